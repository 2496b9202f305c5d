//! Which launcher started this process, and as which rank: a pure function of the environment. torchrun is believed
//! before Open MPI, PMI and Slurm, since it may run inside each of them.

use crate::error::{Error, Kind, Result};
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starter {
    Torchrun,
    OpenMpi,
    Pmi,
    Slurm,
    /// No launcher: one process.
    Plain,
}

impl fmt::Display for Starter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Starter::Torchrun => "torchrun",
            Starter::OpenMpi => "Open MPI",
            Starter::Pmi => "PMI",
            Starter::Slurm => "Slurm",
            Starter::Plain => "none",
        })
    }
}

/// This process's place in its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchEnvironment {
    pub starter: Starter,
    pub rank: usize,
    pub world: usize,
    /// The rank among the processes of this machine, where the launcher tells it.
    pub local_rank: Option<usize>,
    /// The processes of this machine, likewise.
    pub local_world: Option<usize>,
    /// MASTER_ADDR:MASTER_PORT. The agent of torchrun already listens there.
    pub master: Option<String>,
    /// A restarted job resumes.
    pub restarts: usize,
    /// The variables that decided, and those that were passed over, for people.
    pub reason: String,
}

/// The variables by which a launcher tells a process its place.
struct Contract {
    starter: Starter,
    rank: &'static str,
    world: &'static str,
    local_rank: &'static str,
    local_world: &'static str,
    /// Set for the processes that the launcher itself started.
    proof: &'static str,
}

const CONTRACTS: [Contract; 4] = [
    Contract {
        starter: Starter::Torchrun,
        rank: "RANK",
        world: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_world: "LOCAL_WORLD_SIZE",
        proof: "RANK",
    },
    Contract {
        starter: Starter::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        world: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_world: "OMPI_COMM_WORLD_LOCAL_SIZE",
        proof: "OMPI_COMM_WORLD_RANK",
    },
    Contract {
        starter: Starter::Pmi,
        rank: "PMI_RANK",
        world: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_world: "MPI_LOCALNRANKS",
        proof: "PMI_RANK",
    },
    // A batch script has SLURM_PROCID=0 and SLURM_NTASKS too, and would wait for ranks that nobody starts. Only srun sets a step.
    Contract {
        starter: Starter::Slurm,
        rank: "SLURM_PROCID",
        world: "SLURM_NTASKS",
        local_rank: "SLURM_LOCALID",
        local_world: "SLURM_NTASKS_PER_NODE",
        proof: "SLURM_STEP_ID",
    },
];

/// Reads the launch environment through `get`. Contradictions are communication errors that name the variables.
pub fn detect(get: impl Fn(&str) -> Option<String>) -> Result<LaunchEnvironment> {
    let mut places = Vec::new();
    for contract in CONTRACTS.iter().filter(|contract| get(contract.proof).is_some()) {
        places.push((contract, contract.place(&get)?));
    }
    let Some(((contract, place), outer)) = places.split_first() else {
        let alone = match get("SLURM_JOB_ID") {
            Some(job) => format!("Slurm job {job}, but not started by srun: one process"),
            None => "no launcher's variables are set: one process".to_string(),
        };
        return Ok(LaunchEnvironment {
            starter: Starter::Plain,
            rank: 0,
            world: 1,
            local_rank: None,
            local_world: None,
            master: None,
            restarts: 0,
            reason: alone,
        });
    };
    let mut reason = format!("{}={} and {}={}", contract.rank, place.rank, contract.world, place.world);
    for (other, theirs) in outer {
        place.agrees_with(theirs, contract, other)?;
        reason.push_str(&format!("; passed over: {}={} and {}={}", other.rank, theirs.rank, other.world, theirs.world));
    }
    let torchrun = contract.starter == Starter::Torchrun;
    let master = torchrun.then(|| Some(format!("{}:{}", get("MASTER_ADDR")?, get("MASTER_PORT")?))).flatten();
    if torchrun && place.world > 1 && master.is_none() {
        return Err(contradiction("WORLD_SIZE is more than 1, and MASTER_ADDR or MASTER_PORT is not set".to_string()));
    }
    Ok(LaunchEnvironment {
        starter: contract.starter,
        rank: place.rank,
        world: place.world,
        local_rank: place.local_rank,
        local_world: place.local_world,
        master,
        restarts: number(&get, "TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0),
        reason,
    })
}

/// A name that this start of a job does not share with another, where the launcher gives it one; fit for the name of a file.
pub fn job(launch: &LaunchEnvironment, get: impl Fn(&str) -> Option<String>) -> Option<String> {
    let parts: Vec<String> = match launch.starter {
        Starter::Torchrun => vec![launch.master.clone()?, launch.restarts.to_string()],
        Starter::OpenMpi => vec![get("OMPI_MCA_ess_base_jobid").or_else(|| get("PMIX_NAMESPACE"))?],
        Starter::Slurm => {
            vec![get("SLURM_JOB_ID")?, get("SLURM_STEP_ID")?, get("SLURM_RESTART_COUNT").unwrap_or_default()]
        }
        Starter::Pmi => vec![get("PMI_PORT").or_else(|| get("PMI_JOBID"))?],
        Starter::Plain => vec![std::process::id().to_string()],
    };
    Some(parts.join("-").replace(|c: char| !c.is_ascii_alphanumeric(), "-"))
}

struct Place {
    rank: usize,
    world: usize,
    local_rank: Option<usize>,
    local_world: Option<usize>,
}

impl Contract {
    fn place(&self, get: &impl Fn(&str) -> Option<String>) -> Result<Place> {
        let required =
            |name| number(get, name)?.ok_or_else(|| contradiction(format!("{} is set and {name} is not", self.proof)));
        let place = Place {
            rank: required(self.rank)?,
            world: required(self.world)?,
            local_rank: number(get, self.local_rank)?,
            local_world: number(get, self.local_world)?,
        };
        let below = |name, value: usize, bound_name, bound: usize| match value < bound {
            true => Ok(()),
            false => Err(contradiction(format!("{name}={value} is not below {bound_name}={bound}"))),
        };
        below(self.rank, place.rank, self.world, place.world)?;
        if let (Some(local_rank), Some(local_world)) = (place.local_rank, place.local_world) {
            below(self.local_rank, local_rank, self.local_world, local_world)?;
        }
        Ok(place)
    }
}

impl Place {
    /// A launcher inside another either starts several processes in each of the outer one's, or passes its places on.
    fn agrees_with(&self, outer: &Place, contract: &Contract, other: &Contract) -> Result<()> {
        let same_world = self.world == outer.world;
        if self.world.is_multiple_of(outer.world) && (!same_world || self.rank == outer.rank) {
            return Ok(());
        }
        Err(contradiction(format!(
            "{} says {}={} of {}={}, and {} says {}={} of {}={}",
            contract.starter,
            contract.rank,
            self.rank,
            contract.world,
            self.world,
            other.starter,
            other.rank,
            outer.rank,
            other.world,
            outer.world
        )))
    }
}

fn number(get: &impl Fn(&str) -> Option<String>, name: &str) -> Result<Option<usize>> {
    let parse =
        |value: String| value.trim().parse().map_err(|_| contradiction(format!("{name}={value:?} is not a whole number")));
    get(name).map(parse).transpose()
}

fn contradiction(what: String) -> Error {
    Error::new(Kind::Communication, format!("the launch environment contradicts itself: {what}"))
        .help("unset the variables that another launcher left behind, or start all processes with one launcher")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect_in(variables: &[(&str, &str)]) -> Result<LaunchEnvironment> {
        detect(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn nothing_set_is_one_process() {
        let alone = detect_in(&[]).unwrap();
        assert_eq!((alone.starter, alone.rank, alone.world), (Starter::Plain, 0, 1));
    }

    #[test]
    fn torchrun_is_believed_first_and_tells_the_master_and_restarts() {
        let found = detect_in(&[
            ("RANK", "9"),
            ("WORLD_SIZE", "16"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "8"),
            ("MASTER_ADDR", "node0"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
            // One Slurm task on each of two machines starts an agent.
            ("SLURM_STEP_ID", "0"),
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "2"),
        ])
        .unwrap();
        assert_eq!((found.starter, found.rank, found.world, found.local_rank), (Starter::Torchrun, 9, 16, Some(1)));
        assert_eq!((found.master.as_deref(), found.restarts), (Some("node0:29500"), 2));
        assert_eq!(found.reason, "RANK=9 and WORLD_SIZE=16; passed over: SLURM_PROCID=1 and SLURM_NTASKS=2");
    }

    #[test]
    fn each_launcher_is_recognised() {
        let of = |prefix: [&str; 3]| detect_in(&[(prefix[0], "1"), (prefix[1], "4"), (prefix[2], "1")]).unwrap();
        let mpi = of(["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"]);
        assert_eq!((mpi.starter, mpi.rank, mpi.world, mpi.local_rank), (Starter::OpenMpi, 1, 4, Some(1)));
        let pmi = of(["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"]);
        assert_eq!((pmi.starter, pmi.rank, pmi.world, pmi.local_rank), (Starter::Pmi, 1, 4, Some(1)));
        let slurm = detect_in(&[("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "3"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "3")]);
        let slurm = slurm.unwrap();
        assert_eq!((slurm.starter, slurm.rank, slurm.world, slurm.local_rank), (Starter::Slurm, 3, 4, Some(3)));
    }

    #[test]
    fn a_batch_script_without_srun_is_one_process() {
        let found = detect_in(&[("SLURM_JOB_ID", "77"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).unwrap();
        assert_eq!((found.starter, found.world), (Starter::Plain, 1));
        assert!(found.reason.contains("not started by srun"), "{}", found.reason);
    }

    #[test]
    fn a_start_has_a_name_of_its_own() {
        let name = |variables: &[(&str, &str)]| {
            let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
            job(&detect(get).unwrap(), get)
        };
        let slurm = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2"), ("SLURM_JOB_ID", "77"), ("SLURM_STEP_ID", "3")];
        assert_eq!(name(&slurm).as_deref(), Some("77-3-"));
        let mpi = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2"), ("PMIX_NAMESPACE", "prterun-node0-5@1")];
        assert_eq!(name(&mpi).as_deref(), Some("prterun-node0-5-1"));
        assert_eq!(name(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]), None);
        let torchrun = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "::1"), ("MASTER_PORT", "29500")];
        assert_eq!(name(&torchrun).as_deref(), Some("--1-29500-0"));
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        let refused = |variables: &[(&str, &str)], names: &[&str]| {
            let error = detect_in(variables).unwrap_err();
            assert_eq!(error.kind, Kind::Communication);
            assert!(names.iter().all(|name| error.message.contains(name)), "{}", error.message);
        };
        refused(&[("RANK", "0")], &["RANK", "WORLD_SIZE"]);
        refused(&[("RANK", "4"), ("WORLD_SIZE", "4")], &["RANK=4", "WORLD_SIZE=4"]);
        refused(&[("RANK", "one"), ("WORLD_SIZE", "4")], &["RANK", "one"]);
        refused(&[("RANK", "0"), ("WORLD_SIZE", "4")], &["MASTER_ADDR"]);
        let local = [("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "2"), ("LOCAL_WORLD_SIZE", "2")];
        refused(&local, &["LOCAL_RANK=2", "LOCAL_WORLD_SIZE=2"]);
        let two = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4"), ("PMI_RANK", "2"), ("PMI_SIZE", "4")];
        refused(&two, &["Open MPI", "OMPI_COMM_WORLD_RANK=1", "PMI_RANK=2"]);
        let zero = [("PMI_RANK", "0"), ("PMI_SIZE", "0")];
        refused(&zero, &["PMI_SIZE=0"]);
    }
}
