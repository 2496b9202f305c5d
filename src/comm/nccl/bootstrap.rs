//! How the ranks of a group find one another: NCCL itself connects them once all have the same id.

use super::api::{Api, Id};
use crate::comm::heartbeat::{Missing, Wait};
use crate::comm::launch::{LaunchEnvironment, Starter, job};
use crate::error::{Error, Result, write_error};
use std::path::{Path, PathBuf};

const ADDRESS: &str = "NCCL_COMM_ID";

/// Where a rank has the group's id from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// Every rank makes it of this HOST:PORT, where NCCL listens on rank 0.
    Address(String),
    /// Rank 0 writes it to this file, which no other start of a job uses.
    File(PathBuf),
    /// The ranks are threads, which have it from the one that started them.
    Id(Id),
}

/// A new id, for ranks that are threads.
pub fn new_id() -> Result<Id> {
    unique_id(&Api::load()?)
}

fn unique_id(api: &Api) -> Result<Id> {
    let mut id = Id([0; 128]);
    // SAFETY: an id to write to.
    api.check("ncclGetUniqueId", unsafe { (api.get_unique_id)(&mut id) }, std::ptr::null_mut())?;
    Ok(id)
}

impl Bootstrap {
    /// NCCL_COMM_ID where it is set; under torchrun the port after the one where its agent listens; else a file in `folder`, which all ranks see.
    pub fn detect(launch: &LaunchEnvironment, folder: &Path, get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        if let Some(address) = get(ADDRESS) {
            return Ok(Bootstrap::Address(address));
        }
        if let (Starter::Torchrun, Some(master)) = (launch.starter, &launch.master) {
            return Ok(Bootstrap::Address(next_port(master)?));
        }
        let job = job(launch, get).ok_or_else(|| {
            Error::communication(format!(
                "{} gives this start of the job no name by which its ranks would meet",
                launch.starter
            ))
            .help("set NCCL_COMM_ID=HOST:PORT for all ranks: rank 0's host, and a port that is free there")
        })?;
        Ok(Bootstrap::File(folder.join(format!(".nccl-{job}"))))
    }

    /// The id, once it is there.
    pub(super) fn id(&self, api: &Api, rank: usize, wait: &mut Wait) -> Result<Id> {
        match self {
            Bootstrap::Id(id) => Ok(*id),
            Bootstrap::Address(address) => {
                if std::env::var(ADDRESS).as_ref() != Ok(address) {
                    // SAFETY: ranks connect before they start threads that read the environment other than through std, which locks it.
                    unsafe { std::env::set_var(ADDRESS, address) };
                }
                unique_id(api)
            }
            Bootstrap::File(path) if rank == 0 => {
                let id = unique_id(api)?;
                let aside = path.with_extension("tmp");
                let written = std::fs::write(&aside, id.0).and_then(|()| std::fs::rename(&aside, path));
                written.map_err(|e| write_error(path, e))?;
                Ok(id)
            }
            Bootstrap::File(path) => loop {
                if let Some(id) = std::fs::read(path).ok().and_then(|bytes| bytes.try_into().ok()) {
                    return Ok(Id(id));
                }
                wait.pause(|| Missing::These(vec![0]))?;
            },
        }
    }

    /// Rank 0 has connected, and so has every other rank.
    pub(super) fn clear(&self) {
        if let Bootstrap::File(path) = self {
            // Only a file of this start is taken, so one that stays is untidy, no more.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The address beside torchrun's own, with an IPv6 host in brackets, as NCCL wants it.
fn next_port(master: &str) -> Result<String> {
    let port = |port: &str| port.parse::<u16>().ok().and_then(|port| port.checked_add(1));
    let parts = master.rsplit_once(':').and_then(|(host, given)| Some((host, port(given)?)));
    let (host, port) = parts.ok_or_else(|| {
        Error::communication(format!("MASTER_ADDR:MASTER_PORT is {master}, which has no port after it for NCCL"))
            .help("give torchrun a --master-port from 1024 to 65534, or set NCCL_COMM_ID=HOST:PORT for all ranks")
    })?;
    let bare = host.contains(':') && !host.starts_with('[');
    Ok(if bare { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::launch::detect;

    #[test]
    fn each_launcher_has_its_way_to_meet() {
        let of = |variables: &[(&str, &str)]| {
            let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
            Bootstrap::detect(&detect(get).unwrap(), Path::new("/runs/a"), get)
        };
        let address = |address: &str| Bootstrap::Address(address.to_string());
        let torchrun = [("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "node0"), ("MASTER_PORT", "29500")];
        assert_eq!(of(&torchrun).unwrap(), address("node0:29501"));
        let chosen = [&torchrun[..], &[("NCCL_COMM_ID", "node7:1234")]].concat();
        assert_eq!(of(&chosen).unwrap(), address("node7:1234"));
        let slurm = [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2"), ("SLURM_JOB_ID", "77")];
        assert_eq!(of(&slurm).unwrap(), Bootstrap::File("/runs/a/.nccl-77-0-".into()));
        let nameless = of(&[("PMI_RANK", "1"), ("PMI_SIZE", "2")]).unwrap_err();
        assert!(nameless.to_string().contains("NCCL_COMM_ID=HOST:PORT"), "{nameless}");
    }

    #[test]
    fn nccl_listens_on_the_next_port() {
        assert_eq!(next_port("fe80::1:29500").unwrap(), "[fe80::1]:29501");
        assert_eq!(next_port("[fe80::1]:29500").unwrap(), "[fe80::1]:29501");
        for master in ["node0:65535", "node0", "node0:port"] {
            assert!(next_port(master).unwrap_err().message.contains(master));
        }
    }
}
