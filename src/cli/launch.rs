//! Which ranks a command has, and how they talk to one another.

use super::device::{DeviceChoice, Opened};
use crate::comm::launch::{self, LaunchEnvironment, Starter};
use crate::comm::nccl::{self, Bootstrap};
use crate::comm::{Comm, agree, threads};
use crate::device::gpu::visible_devices;
use crate::error::{Error, Result};
use crate::ops::Ops;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// Where the ranks of a run are.
pub enum Ranks {
    /// All in this process.
    Threads(usize),
    /// One in each process of a launcher.
    Processes(LaunchEnvironment),
}

impl Ranks {
    /// Under a launcher it decides; else `--ranks`, which defaults to the visible GPUs where `device` is those.
    pub fn detect(ranks: Option<u32>, device: DeviceChoice) -> Result<Ranks> {
        let launch = launch::detect(environment)?;
        // A single process has nobody to talk to, unless it is told where: NCCL can be tried with one rank.
        let meets = launch.world > 1 || environment("NCCL_COMM_ID").is_some();
        if launch.starter != Starter::Plain && (ranks.is_some() || meets) {
            if let Some(ranks) = ranks {
                let what = format!("--ranks {ranks}: {} started this process as one of {}", launch.starter, launch.world);
                return Err(Error::usage(what).help("leave --ranks out: the launcher decides"));
            }
            return Ok(Ranks::Processes(launch));
        }
        match (ranks, device) {
            (Some(ranks), _) => Ok(Ranks::Threads(ranks as usize)),
            (None, DeviceChoice::Cuda) => Ok(Ranks::Threads(visible_devices()?.max(1))),
            (None, _) => Ok(Ranks::Threads(1)),
        }
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// This process's place among several that a launcher started; none where it is alone.
pub fn launched() -> Result<Option<LaunchEnvironment>> {
    let launch = launch::detect(environment)?;
    Ok((launch.starter != Starter::Plain && launch.world > 1).then_some(launch))
}

/// Refuses to be one of several processes, which would all do the same work and write the same files.
pub fn require_single_process() -> Result<()> {
    let Some(launch) = launched()? else { return Ok(()) };
    let what = format!("{} started this process as rank {} of {}", launch.starter, launch.rank, launch.world);
    Err(Error::usage(format!("{what}, but this command runs in one process")).help("start one process"))
}

/// The GPU of a process: the only visible one, else that of its place on the machine.
pub fn ordinal(launch: &LaunchEnvironment) -> Result<usize> {
    match (visible_devices()?, launch.local_rank) {
        (0 | 1, _) => Ok(0),
        (visible, Some(local)) if local < visible => Ok(local),
        (visible, Some(local)) => {
            Err(Error::usage(format!("this process is number {local} of its machine, where {visible} GPUs are visible"))
                .help("start one process a GPU"))
        }
        (visible, None) => {
            Err(Error::usage(format!("{} does not say which of the {visible} GPUs is this process's", launch.starter))
                .help("make one GPU visible to each process (CUDA_VISIBLE_DEVICES)"))
        }
    }
}

/// Joins the other processes of a job. GPUs, and the emulator, talk through NCCL, CPUs through MPI. `folder` is seen by all, and there before.
pub fn connect(
    launch: &LaunchEnvironment,
    opened: Opened,
    folder: &Path,
    patience: Duration,
) -> Result<(Box<dyn Ops>, Rc<dyn Comm>)> {
    let Opened { ops, queue } = opened;
    let comm: Rc<dyn Comm> = match queue {
        None => connect_cpus(launch, patience)?,
        Some(queue) => {
            let bootstrap = Bootstrap::detect(launch, folder, environment)?;
            // Ranks that have met nobody cannot compare what they were told, but people can.
            let connected = nccl::connect(queue, launch.rank, launch.world, &bootstrap, patience);
            Rc::new(connected.map_err(|error| error.context(format!("{}: {}", launch.starter, launch.reason)))?)
        }
    };
    let (rank, world) = (comm.rank(), comm.world());
    let known = match (rank, world) == (launch.rank, launch.world) {
        true => Ok(()),
        false => Err(Error::communication(format!(
            "{} started this process as rank {} of {}, {} knows it as rank {rank} of {world}",
            launch.starter,
            launch.rank,
            launch.world,
            comm.describe()
        ))
        .help("start the processes with the launcher of the MPI that this program was built with")),
    };
    agree(comm.as_ref(), known)?;
    Ok((ops, comm))
}

#[cfg(feature = "mpi")]
fn connect_cpus(launch: &LaunchEnvironment, patience: Duration) -> Result<Rc<dyn Comm>> {
    if launch.starter == Starter::Torchrun {
        return Err(Error::usage("torchrun starts ranks for GPUs; on CPUs ranks talk through MPI")
            .help("start them with mpirun, or use --ranks without a launcher"));
    }
    Ok(Rc::new(crate::comm::mpi::connect(patience)?))
}

#[cfg(not(feature = "mpi"))]
fn connect_cpus(launch: &LaunchEnvironment, _patience: Duration) -> Result<Rc<dyn Comm>> {
    let what = format!(
        "{} started {} processes; on CPUs they talk through MPI, which this binary was built without",
        launch.starter, launch.world
    );
    Err(Error::usage(what).help("build it with `cargo build --release --features mpi`, or use --ranks without a launcher"))
}

/// How threads of one process talk: through NCCL where each has a GPU of its own.
pub enum Group {
    Memory(threads::Threads),
    Nccl { id: Bootstrap, rank: usize, world: usize, patience: Duration },
}

impl Group {
    /// One a rank.
    pub fn new(world: usize, device: DeviceChoice, patience: Duration) -> Result<Vec<Group>> {
        let gpus = if device == DeviceChoice::Cuda { visible_devices()? } else { 0 };
        if gpus > 1 && world > gpus {
            return Err(Error::usage(format!("--ranks {world}: {gpus} GPUs are visible")).help("use at most one rank a GPU"));
        }
        if gpus > 1 && world > 1 {
            let id = Bootstrap::Id(nccl::new_id()?);
            return Ok((0..world).map(|rank| Group::Nccl { id: id.clone(), rank, world, patience }).collect());
        }
        Ok(threads::group(world, patience).into_iter().map(Group::Memory).collect())
    }

    /// The GPU of this rank.
    pub fn ordinal(&self) -> usize {
        match self {
            Group::Memory(_) => 0,
            Group::Nccl { rank, .. } => *rank,
        }
    }

    /// Ranks that share its device.
    pub fn on_device(&self, world: usize) -> usize {
        match self {
            Group::Memory(_) => world,
            Group::Nccl { .. } => 1,
        }
    }

    pub fn connect(self, opened: Opened) -> Result<(Box<dyn Ops>, Rc<dyn Comm>)> {
        let Opened { ops, queue } = opened;
        let comm: Rc<dyn Comm> = match (self, queue) {
            (Group::Memory(comm), queue) => Rc::new(comm.over(queue)),
            (Group::Nccl { id, rank, world, patience }, Some(queue)) => {
                Rc::new(nccl::connect(queue, rank, world, &id, patience)?)
            }
            (Group::Nccl { .. }, None) => return Err(Error::internal("NCCL joins GPUs")),
        };
        Ok((ops, comm))
    }
}
