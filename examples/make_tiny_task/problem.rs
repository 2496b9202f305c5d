//! A problem with a worked solution that checks itself backwards.

use super::random::Random;
use super::stories::{self, LARGEST};

pub struct Problem {
    pub question: String,
    pub solution: String,
    pub answer: i64,
    /// The computation without its story: what keeps the held-out problems apart from the training ones.
    pub computation: String,
}

pub struct Story {
    pub question: String,
    /// What the solution sets out to do: "find how many coins Mia has".
    pub goal: String,
    pub steps: Vec<Step>,
}

/// One equation `a op b`, and the words in front of it.
pub struct Step {
    pub about: String,
    pub a: i64,
    pub op: char,
    pub b: i64,
}

impl Step {
    pub fn result(&self) -> i64 {
        match self.op {
            '+' => self.a + self.b,
            '-' => self.a - self.b,
            _ => self.a * self.b,
        }
    }
    fn equation(&self) -> String {
        format!("{}{}{}={}", self.a, self.op, self.b, self.result())
    }
    /// Worked through the units where a two-digit number changes: "27+5 is 7+5=12, so 32".
    fn work(&self) -> String {
        let Step { about, a, op, b } = self;
        let units = if *op == '-' && a % 10 < *b { a % 10 + 10 } else { a % 10 };
        if *op == '*' || units == *a {
            return format!("{about}{}.", self.equation());
        }
        let column = Step { about: String::new(), a: units, op: *op, b: *b };
        format!("{about}{a}{op}{b} is {}, so {}.", column.equation(), self.result())
    }
    fn inverse(&self) -> String {
        let op = match self.op {
            '+' => '-',
            '-' => '+',
            _ => '/',
        };
        format!("{}{op}{}={}", self.result(), self.b, self.a)
    }
}

/// None where a number on the way is negative, or a product is not one of the multiplication table.
pub fn problem(random: &mut Random) -> Option<Problem> {
    let Story { question, goal, steps } = match random.below(5) {
        0 => stories::purchase(random),
        1 | 2 => stories::expression(random),
        _ => stories::changes(random),
    };
    if steps.iter().any(|step| step.result() < 0 || (step.op == '*' && !(2..=LARGEST).contains(&step.a))) {
        return None;
    }
    let answer = steps.last()?.result();
    let list = |texts: Vec<String>, glue| texts.join(glue);
    let work = list(steps.iter().map(Step::work).collect(), " ");
    let check = list(steps.iter().rev().map(Step::inverse).collect(), ", ");
    let solution = format!(
        "Okay, so I need to {goal}. {work} Wait, let me check: {check}. That fits.\n\n**Final Answer**\n\\boxed{{{answer}}}"
    );
    Some(Problem { question, solution, answer, computation: list(steps.iter().map(Step::equation).collect(), " ") })
}
