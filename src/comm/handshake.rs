//! Before any work: are the ranks of one job, with one binary and one configuration?

use super::Comm;
use crate::error::{Error, Result};

/// Compares named facts (the binary, the configuration's hash …) between all ranks. The first that is not the same everywhere is a communication error, with its name,
/// the ranks, and what each has.
pub fn handshake(comm: &dyn Comm, facts: &[(&str, String)]) -> Result<()> {
    let mine = serde_json::to_vec(facts).map_err(|e| Error::internal(e.to_string()))?;
    let told = comm.share(&mine)?;
    let mut all: Vec<Vec<(String, String)>> = Vec::with_capacity(told.len());
    for (rank, text) in told.iter().enumerate() {
        let facts = serde_json::from_slice(text);
        all.push(facts.map_err(|e| differ(format!("rank {rank} says what no rank of this program would ({e})")))?);
    }
    let names = |facts: &[(String, String)]| facts.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>().join(", ");
    expect_same("what is compared", all.iter().map(|facts| names(facts)).collect())?;
    (0..facts.len()).try_for_each(|i| expect_same(&all[0][i].0, all.iter().map(|facts| facts[i].1.clone()).collect()))
}

/// Refuses values, one a rank, that are not all the same.
fn expect_same(name: &str, values: Vec<String>) -> Result<()> {
    let mut groups: Vec<(&str, Vec<String>)> = Vec::new();
    for (rank, value) in values.iter().enumerate() {
        match groups.iter_mut().find(|(known, _)| known == value) {
            Some((_, ranks)) => ranks.push(rank.to_string()),
            None => groups.push((value, vec![rank.to_string()])),
        }
    }
    if groups.len() == 1 {
        return Ok(());
    }
    let of = |ranks: &[String]| format!("rank{} {}", if ranks.len() > 1 { "s" } else { "" }, ranks.join(", "));
    let parts: Vec<String> = groups.iter().map(|(value, ranks)| format!("{value} on {}", of(ranks))).collect();
    Err(differ(format!("the ranks differ in {name}: {}", parts.join("; "))))
}

fn differ(what: String) -> Error {
    Error::communication(what).help("start the same binary with the same configuration on every rank")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::threads;
    use crate::error::Kind;
    use std::time::Duration;

    /// Shakes hands as ranks that have these facts.
    fn meet(facts: &[Vec<(&str, String)>]) -> Vec<Result<()>> {
        std::thread::scope(|scope| {
            let ranks = threads::group(facts.len(), Duration::from_secs(60)).into_iter().zip(facts);
            let ranks: Vec<_> = ranks.map(|(comm, facts)| scope.spawn(move || handshake(&comm, facts))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    fn facts<'a>(build: &str, config: &str) -> Vec<(&'a str, String)> {
        vec![("the build", build.to_string()), ("the configuration", config.to_string())]
    }

    #[test]
    fn the_same_everywhere_is_fine() {
        assert!(meet(&[facts("1", "ab"), facts("1", "ab"), facts("1", "ab")]).iter().all(|end| end.is_ok()));
        assert!(meet(&[vec![], vec![]]).iter().all(|end| end.is_ok()));
    }

    #[test]
    fn the_first_difference_is_named_on_every_rank() {
        for end in meet(&[facts("1", "ab"), facts("2", "cd"), facts("1", "ef")]) {
            let error = end.unwrap_err();
            assert_eq!(error.kind, Kind::Communication);
            assert_eq!(error.message, "the ranks differ in the build: 1 on ranks 0, 2; 2 on rank 1");
        }
        for end in meet(&[facts("1", "ab"), facts("1", "cd")]) {
            let message = end.unwrap_err().message;
            assert_eq!(message, "the ranks differ in the configuration: ab on rank 0; cd on rank 1");
        }
        let message = meet(&[facts("1", "ab"), vec![("the build", "1".to_string())]])[0].clone().unwrap_err().message;
        let expected = "the ranks differ in what is compared: the build, the configuration on rank 0; the build on rank 1";
        assert_eq!(message, expected);
    }
}
