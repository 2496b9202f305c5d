//! Word problems and expressions with worked solutions that check themselves backwards.

/// SplitMix64 (Steele, Lea, Flood 2014): the data must not change with a crate's version.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
    fn range(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as usize) as i64
    }
    fn pick<'a>(&mut self, options: &[&'a str]) -> &'a str {
        options[self.below(options.len())]
    }
}

pub struct Problem {
    pub question: String,
    pub solution: String,
    pub answer: i64,
    /// The computation without its story: what keeps the held-out problems apart from the training ones.
    pub computation: String,
}

/// One equation `a op b = result`, and what the text says about it.
struct Step(String, i64, char, i64);

impl Step {
    fn result(&self) -> i64 {
        match self.2 {
            '+' => self.1 + self.3,
            '-' => self.1 - self.3,
            _ => self.1 * self.3,
        }
    }
    fn equation(&self) -> String {
        format!("{}{}{}={}", self.1, self.2, self.3, self.result())
    }
    /// The equation, worked through its units where a two-digit number changes: "27+5 is 7+5=12, so 32".
    fn work(&self) -> String {
        let Step(about, a, op, b) = self;
        let units = if *op == '-' && a % 10 < *b { a % 10 + 10 } else { a % 10 };
        if *op == '*' || units == *a {
            return format!("{about}{}.", self.equation());
        }
        let column = Step(String::new(), units, *op, *b);
        format!("{about}{a}{op}{b} is {}, so {}.", column.equation(), self.result())
    }
    fn inverse(&self) -> String {
        let inverse = [('+', '-'), ('-', '+'), ('*', '/')].into_iter().find(|(op, _)| *op == self.2).map_or('?', |(_, i)| i);
        format!("{}{inverse}{}={}", self.result(), self.3, self.1)
    }
}

/// None where a number on the way is negative or too large.
pub fn problem(random: &mut Random) -> Option<Problem> {
    let (question, goal, steps) = match random.below(5) {
        0 => purchase(random),
        1 | 2 => expression(random),
        _ => story(random),
    };
    let answer = steps.last()?.result();
    // Factors stay within the multiplication table.
    if steps.iter().any(|step| !(0..100).contains(&step.result()) || (step.2 == '*' && !(2..10).contains(&step.1))) {
        return None;
    }
    let join = |texts: Vec<String>, glue| texts.join(glue);
    let work = join(steps.iter().map(Step::work).collect(), " ");
    let check = join(steps.iter().rev().map(Step::inverse).collect(), ", ");
    let solution = format!(
        "Okay, so I need to {goal}. {work} Wait, let me check: {check}. That fits.\n\n**Final Answer**\n\\boxed{{{answer}}}"
    );
    Some(Problem { question, solution, answer, computation: join(steps.iter().map(Step::equation).collect(), " ") })
}

const NAMES: [&str; 10] = ["Mia", "Ben", "Ana", "Tom", "Eva", "Sam", "Lea", "Max", "Zoe", "Kim"];
const THINGS: [&str; 8] = ["coins", "books", "pens", "cards", "shells", "stamps", "apples", "marbles"];

/// A count that changes two or three times.
fn story(random: &mut Random) -> (String, String, Vec<Step>) {
    let (name, things) = (random.pick(&NAMES), random.pick(&THINGS));
    let start = random.range(3, 40);
    let mut count = start;
    let mut events = Vec::new();
    let mut steps = Vec::new();
    for _ in 0..random.range(2, 3) {
        let n = random.range(2, 9);
        let (verb, op) = match random.below(2) {
            0 => (random.pick(&["finds", "buys", "gets"]), '+'),
            _ => (random.pick(&["loses", "sells", "gives away"]), '-'),
        };
        let event = format!("{verb} {n}");
        let step = Step(format!("{name} {event}: "), count, op, n);
        count = step.result();
        steps.push(step);
        events.push(event);
    }
    let last = events.pop().unwrap_or_default();
    let events = events.join(", ");
    let question = format!("{name} has {start} {things}. {name} {events} and {last}. How many {things} does {name} have now?");
    (question, format!("find how many {things} {name} has"), steps)
}

/// A product and one more term.
fn purchase(random: &mut Random) -> (String, String, Vec<Step>) {
    let (name, things) = (random.pick(&NAMES), random.pick(&THINGS));
    let [n, price, other] = [0; 3].map(|_| random.range(2, 9));
    let cost = Step(format!("The {things} cost "), n, '*', price);
    let (offer, op) = [("a bag for", '+'), ("a rebate of", '-')][random.below(2)];
    let question = format!("{name} buys {n} {things} for {price} each with {offer} {other}. How much does {name} pay?");
    let total = Step("In all ".into(), cost.result(), op, other);
    (question, format!("find how much {name} pays"), vec![cost, total])
}

/// A bracket, a factor and one more term.
fn expression(random: &mut Random) -> (String, String, Vec<Step>) {
    let [a, b, factor, d] = [0; 4].map(|_| random.range(2, 9));
    let [inner, outer] = [0; 2].map(|_| ['+', '-'][random.below(2)]);
    let bracket = Step("First the bracket: ".into(), a, inner, b);
    let product = Step("Then ".into(), bracket.result(), '*', factor);
    let last = Step("Then ".into(), product.result(), outer, d);
    let text = format!("({a}{inner}{b})*{factor}{outer}{d}");
    (format!("Compute {text}."), format!("compute {text}"), vec![bracket, product, last])
}
