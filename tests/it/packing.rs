//! Micro-batches and the order of rows: properties for any input, and pinned cases.

use limo_engine::data::{self, Example, IGNORE, MicroBatch};
use limo_engine::error::Kind;
use proptest::prelude::*;

fn example(tokens: Vec<i32>, supervised: Vec<bool>) -> Example {
    Example { id: String::new(), tokens, supervised }
}

#[test]
fn targets_stop_at_the_border_of_a_sequence() {
    let (a, b) = (example(vec![5, 6, 7], vec![false, true, true]), example(vec![8, 9], vec![true, true]));
    let packed = data::pack(&[&a, &b], 8, true).unwrap();
    let expected = MicroBatch {
        tokens: vec![5, 6, 7, 8, 9],
        positions: vec![0, 1, 2, 0, 1],
        targets: vec![6, 7, IGNORE, 9, IGNORE],
        cu_seqlens: vec![0, 3, 5],
        rows: vec![0, 1],
    };
    assert_eq!(packed, [expected]);
    let error = data::pack(&[&a, &b], 2, true).unwrap_err();
    assert!(error.kind == Kind::Data, "{error}");
    assert!(error.message.contains("data.max_tokens") && error.message.contains("train.micro_tokens = 2"), "{error}");
}

proptest! {
    #[test]
    fn packing_keeps_every_row_once_and_whole(
        rows in prop::collection::vec(prop::collection::vec((0..1000i32, any::<bool>()), 1..40), 0..30),
        room in 0..80usize,
        packing: bool,
    ) {
        let examples: Vec<Example> = rows.iter().map(|row| {
            let (tokens, supervised) = row.iter().copied().unzip();
            example(tokens, supervised)
        }).collect();
        let refs: Vec<&Example> = examples.iter().collect();
        let micro_tokens = rows.iter().map(Vec::len).max().unwrap_or(1) + room;
        let batches = data::pack(&refs, micro_tokens, packing).unwrap();
        prop_assert_eq!(&batches, &data::pack(&refs, micro_tokens, packing).unwrap());
        let mut seen: Vec<usize> = batches.iter().flat_map(|batch| batch.rows.clone()).collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..rows.len()).collect::<Vec<_>>());
        for batch in &batches {
            prop_assert!(batch.tokens.len() <= micro_tokens);
            prop_assert!(packing || batch.rows.len() == 1);
            prop_assert_eq!(batch.cu_seqlens.len(), batch.rows.len() + 1);
            prop_assert_eq!((batch.cu_seqlens[0], *batch.cu_seqlens.last().unwrap() as usize), (0, batch.tokens.len()));
            prop_assert_eq!((batch.positions.len(), batch.targets.len()), (batch.tokens.len(), batch.tokens.len()));
            for (index, &row) in batch.rows.iter().enumerate() {
                let span = batch.cu_seqlens[index] as usize..batch.cu_seqlens[index + 1] as usize;
                let original = &examples[row];
                prop_assert_eq!(&batch.tokens[span.clone()], &original.tokens[..]);
                for (at, position) in span.clone().enumerate() {
                    prop_assert_eq!(batch.positions[position], at as i32);
                    let target = if at + 1 < span.len() && original.supervised[at + 1] { original.tokens[at + 1] } else { IGNORE };
                    prop_assert_eq!(batch.targets[position], target);
                }
            }
        }
        // No two micro-batches of a first-fit packing would fit into one.
        if packing {
            let full = |batch: &MicroBatch| batch.tokens.len();
            for (index, a) in batches.iter().enumerate() {
                prop_assert!(batches[index + 1..].iter().all(|b| full(a) + full(b) > micro_tokens));
            }
        }
    }

    #[test]
    fn an_order_visits_every_row_once(seed: u64, epoch in 0..1000u64, n in 0..300usize) {
        let order = data::order(seed, epoch, n);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
        prop_assert_eq!(order, data::order(seed, epoch, n));
    }
}

#[test]
fn the_order_is_pinned() {
    // From the definition, in another language.
    assert_eq!(data::order(42, 0, 10), [5, 7, 8, 2, 3, 0, 6, 4, 1, 9]);
    assert_eq!(data::order(42, 1, 10), [6, 4, 5, 7, 3, 9, 1, 0, 2, 8]);
    assert_eq!(data::order(43, 0, 10), [6, 3, 0, 5, 2, 7, 1, 9, 4, 8]);
    // Every place is equally likely for row 0: 4000 epochs, 8 places, within 5 standard deviations of 500.
    let mut counts = [0i32; 8];
    for epoch in 0..4000 {
        counts[data::order(7, epoch, 8).iter().position(|&row| row == 0).unwrap()] += 1;
    }
    assert!(counts.iter().all(|count| (count - 500).abs() < 105), "{counts:?}");
}
