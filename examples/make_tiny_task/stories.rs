//! Three kinds of problems: their text, what is asked, and the steps to the answer.

use super::problem::{Step, Story};
use super::random::Random;

const NAMES: [&str; 6] = ["Mia", "Ben", "Ana", "Tom", "Eva", "Sam"];
const THINGS: [&str; 5] = ["coins", "books", "pens", "cards", "apples"];
/// The largest factor and second operand: what there is to know by heart must fit the training set.
pub const LARGEST: i64 = 7;

/// A count that changes two or three times.
pub fn changes(random: &mut Random) -> Story {
    let (name, things) = (random.pick(&NAMES), random.pick(&THINGS));
    let start = random.range(3, 40);
    let mut count = start;
    let mut events = Vec::new();
    let mut steps = Vec::new();
    for _ in 0..random.range(2, 3) {
        let n = random.range(2, LARGEST);
        let (verb, op) = match random.below(2) {
            0 => (random.pick(&["finds", "buys", "gets"]), '+'),
            _ => (random.pick(&["loses", "sells", "gives away"]), '-'),
        };
        let event = format!("{verb} {n}");
        let step = Step { about: format!("{name} {event}: "), a: count, op, b: n };
        count = step.result();
        steps.push(step);
        events.push(event);
    }
    let last = events.pop().unwrap_or_default();
    let events = events.join(", ");
    Story {
        question: format!("{name} has {start} {things}. {name} {events} and {last}. How many {things} does {name} have now?"),
        goal: format!("find how many {things} {name} has"),
        steps,
    }
}

/// A product and one more term.
pub fn purchase(random: &mut Random) -> Story {
    let (name, things) = (random.pick(&NAMES), random.pick(&THINGS));
    let [n, price, other] = [0; 3].map(|_| random.range(2, LARGEST));
    let (offer, op) = random.pick(&[("a bag for", '+'), ("a rebate of", '-')]);
    let cost = Step { about: format!("The {things} cost "), a: n, op: '*', b: price };
    let total = Step { about: "In all ".into(), a: cost.result(), op, b: other };
    Story {
        question: format!("{name} buys {n} {things} for {price} each with {offer} {other}. How much does {name} pay?"),
        goal: format!("find how much {name} pays"),
        steps: vec![cost, total],
    }
}

/// A bracket, a factor and one more term.
pub fn expression(random: &mut Random) -> Story {
    let [a, b, factor, d] = [0; 4].map(|_| random.range(2, LARGEST));
    let [inner, outer] = [0; 2].map(|_| random.pick(&['+', '-']));
    let bracket = Step { about: "First the bracket: ".into(), a, op: inner, b };
    let product = Step { about: "Then ".into(), a: bracket.result(), op: '*', b: factor };
    let last = Step { about: "Then ".into(), a: product.result(), op: outer, b: d };
    let text = format!("({a}{inner}{b})*{factor}{outer}{d}");
    Story { question: format!("Compute {text}."), goal: format!("compute {text}"), steps: vec![bracket, product, last] }
}
