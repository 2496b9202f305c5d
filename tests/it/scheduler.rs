//! The scheduler of batched sampling against a device that is simulated: memory of pages that hold, for each token, a hash of all tokens up to it.

use limo_engine::error::Kind;
use limo_engine::sample::scheduler::{Chunk, Drawn, Ended, Limits, Move, Request, Row, SampleId, Scheduler, Stats, Step, Work};
use limo_engine::testing::random::Random;
use std::collections::{BTreeSet, HashMap, VecDeque};

/// What a page holds where nothing was written, or what was there is gone.
const GARBAGE: u64 = 0xdead;
const STOP: i32 = 0;

/// What the keys and values of a token stand for: all tokens up to it.
fn chain(before: u64, token: i32) -> u64 {
    Random::new(before.rotate_left(17) ^ token as u64).bits()
}

/// The token drawn after `context`, of which about one in `ends` stops.
fn draw(name: (u64, u32), context: u64, ends: usize) -> i32 {
    let mut random = Random::new(context ^ (name.0 << 32) ^ name.1 as u64);
    if random.below(ends) == 0 { STOP } else { 1 + random.below(5) as i32 }
}

/// A job and what must come out of it.
struct Job {
    limits: Limits,
    requests: Vec<Request>,
    ends: usize,
    /// By caller's numbers: the prompt's and the new tokens, and how many are the prompt's.
    answers: HashMap<(u64, u32), (Vec<i32>, usize)>,
}

impl Job {
    fn new(limits: Limits, requests: Vec<Request>, ends: usize) -> Self {
        let mut answers = HashMap::new();
        for request in &requests {
            for sample in &request.samples {
                let name = (request.prompt, *sample);
                let mut tokens = request.tokens.clone();
                let mut context = tokens.iter().fold(0, |before, token| chain(before, *token));
                for _ in 0..request.max_tokens {
                    tokens.push(draw(name, context, ends));
                    context = chain(context, tokens[tokens.len() - 1]);
                    if tokens.ends_with(&[STOP]) {
                        break;
                    }
                }
                answers.insert(name, (tokens, request.tokens.len()));
            }
        }
        Job { limits, requests, ends, answers }
    }

    fn request(&self, prompt: u64) -> &Request {
        self.requests.iter().find(|request| request.prompt == prompt).unwrap()
    }

    /// Whether a stop token ends the answer, which a row computes if it is seen late.
    fn stops(&self, name: (u64, u32)) -> bool {
        self.answers[&name].0.ends_with(&[STOP])
    }

    /// A small one, in which everything that is rare happens often.
    fn tiny(random: &mut Random) -> Self {
        let mut one_to = |most: usize| 1 + random.below(most);
        let (most_pages, most_tokens) = if one_to(4) == 1 { (30, 24) } else { (11, 12) };
        let limits = Limits {
            page: one_to(4),
            pages: 1 + one_to(most_pages),
            host_pages: one_to(9) - 1,
            batch: one_to(6),
            chunk: one_to(8),
        };
        let room = (limits.pages - 1) * limits.page;
        let requests = (0..one_to(4)).map(|prompt| {
            let tokens = one_to(room.min(9));
            let max_tokens = one_to((room + 1 - tokens).min(most_tokens));
            let samples = (0..one_to(4)).map(|sample| 7 * sample as u32).collect();
            let tokens = (0..tokens).map(|_| one_to(5) as i32).collect();
            Request { prompt: 3 * prompt as u64 + 1, tokens, samples, max_tokens }
        });
        let requests = requests.collect();
        Job::new(limits, requests, 2 + random.below(20))
    }
}

/// What happened in traces, to see that they are not all of the easy kind.
#[derive(Default, Debug)]
struct Seen {
    /// Decode steps.
    decodes: usize,
    /// Moves of a page to another, and back from host memory.
    copies: usize,
    swaps: usize,
    /// Rows whose token the host did not know, and rows that were computed again.
    unknown: usize,
    replayed: usize,
    /// Prompt tokens that were computed again.
    again: usize,
}

impl Seen {
    fn add(mut self, other: Seen) -> Seen {
        self.decodes += other.decodes;
        self.copies += other.copies;
        self.swaps += other.swaps;
        self.unknown += other.unknown;
        self.replayed += other.replayed;
        self.again += other.again;
        self
    }
}

struct Device<'a> {
    job: &'a Job,
    cache: Vec<Vec<u64>>,
    host: Vec<Vec<u64>>,
    /// By slot: the decode step that used it last, for whom, and what it drew.
    slots: Vec<Option<(usize, SampleId, usize, i32)>>,
}

impl<'a> Device<'a> {
    fn new(job: &'a Job) -> Self {
        let Limits { page, pages, host_pages, batch, .. } = job.limits;
        let empty = |pages| vec![vec![GARBAGE; page]; pages];
        Device { job, cache: empty(pages), host: empty(host_pages), slots: vec![None; batch] }
    }

    fn run_moves(&mut self, moves: &[Move]) {
        for one in moves {
            let empty = vec![GARBAGE; self.job.limits.page];
            match *one {
                Move::Out { page, host } => self.host[host as usize] = std::mem::replace(&mut self.cache[page as usize], empty),
                Move::In { host, page } => self.cache[page as usize] = std::mem::replace(&mut self.host[host as usize], empty),
                Move::Copy { from, to } => self.cache[to as usize] = self.cache[from as usize].clone(),
            }
        }
    }

    /// Computes the token at `position` of a sequence after seeing that its pages hold all tokens before. Returns the context.
    fn compute(&mut self, tokens: &[i32], pages: &[u32], position: usize) -> u64 {
        let page = self.job.limits.page;
        assert_eq!(pages.len(), position / page + 1, "pages for {} tokens", position + 1);
        let mut context = 0;
        for (at, token) in tokens[..position].iter().enumerate() {
            context = chain(context, *token);
            assert_eq!(self.cache[pages[at / page] as usize][at % page], context, "token {at} of {position}");
        }
        context = chain(context, tokens[position]);
        self.cache[pages[position / page] as usize][position % page] = context;
        context
    }

    /// A row of decode step number `decode`: computes its token, and draws the next.
    fn row(&mut self, row: &Row, name: (u64, u32), pages: &[u32], decode: usize) -> i32 {
        let (tokens, prompt) = &self.job.answers[&name];
        assert_eq!(row.index, row.position + 1 - prompt);
        let before = if row.fresh { None } else { self.slots[row.slot as usize] };
        if !row.fresh {
            let before = before.map(|(decode, sample, index, _)| (decode + 1, sample, index + 1));
            assert_eq!(before, Some((decode, row.sample, row.index)), "slot {} goes on with its sample", row.slot);
        }
        // A stop token is seen a step late: it is computed, and what is drawn after it is thrown away. No other last token is.
        let last = row.position + 1 == tokens.len();
        assert!(!last || self.job.stops(name), "{name:?} has a row too many");
        let token = row.token.unwrap_or_else(|| before.expect("a fresh row has a token").3);
        assert_eq!(token, tokens[row.position], "the token at position {} of {name:?}", row.position);
        let context = self.compute(tokens, pages, row.position);
        let drawn = draw(name, context, self.job.ends);
        self.slots[row.slot as usize] = Some((decode, row.sample, row.index, drawn));
        drawn
    }
}

/// A job on its way.
struct Trace<'a> {
    job: &'a Job,
    scheduler: Scheduler,
    device: Device<'a>,
    /// Samples whose last row was not issued, in the order of arrival.
    unfinished: BTreeSet<(u64, u32)>,
    ended: BTreeSet<(u64, u32)>,
    /// By step: what was drawn and not reported.
    draws: VecDeque<Vec<(SampleId, usize, i32)>>,
    /// Prefill steps since the last decode step.
    prefills: usize,
    seen: Seen,
}

impl Trace<'_> {
    /// Runs a job; panics if anything is not as it should be.
    fn run(job: &Job, random: &mut Random) -> Seen {
        let names = job.requests.iter().flat_map(|r| r.samples.iter().map(|sample| (r.prompt, *sample)));
        let mut trace = Trace {
            job,
            scheduler: Scheduler::new(job.limits).unwrap(),
            device: Device::new(job),
            unfinished: names.collect(),
            ended: BTreeSet::new(),
            draws: VecDeque::new(),
            prefills: 0,
            seen: Seen::default(),
        };
        let mut to_push = job.requests.iter();
        loop {
            while trace.scheduler.wants_more() && to_push.len() > 0 && random.below(3) > 0 {
                trace.scheduler.push(to_push.next().unwrap().clone()).unwrap();
            }
            if let Some(Step { moves, work }) = trace.scheduler.step() {
                trace.draws.push_back(Vec::new());
                trace.moves(&moves);
                match work {
                    Work::Prefill(chunks) => trace.prefill(&chunks),
                    Work::Decode(rows) => trace.decode(&rows),
                }
                trace.report(random.below(2));
            } else {
                let Stats { running, preempted, waiting, .. } = trace.scheduler.stats();
                assert_eq!((running, preempted, waiting), (0, 0, 0), "somebody waits for nothing in {:?}", job.limits);
                trace.report(0);
                if to_push.len() == 0 {
                    return trace.end();
                }
            }
        }
    }

    fn moves(&mut self, moves: &[Move]) {
        self.seen.copies += moves.iter().filter(|m| matches!(m, Move::Copy { .. })).count();
        self.seen.swaps += moves.iter().filter(|m| matches!(m, Move::In { .. })).count();
        self.device.run_moves(moves);
    }

    fn prefill(&mut self, chunks: &[Chunk]) {
        let Limits { page, batch, chunk: most, .. } = self.job.limits;
        let sum: usize = chunks.iter().map(|c| c.tokens.len()).sum();
        assert!((1..=most).contains(&sum) && chunks.len() <= batch);
        self.prefills += 1;
        let longest = self.job.requests.iter().map(|r| r.tokens.len() - 1).max().unwrap();
        assert!(self.prefills <= longest.div_ceil(most), "those who could decode wait");
        for chunk in chunks {
            let (prompt, end) = (&self.job.request(chunk.prompt).tokens, chunk.start + chunk.tokens.len());
            assert!(!chunk.tokens.is_empty() && end < prompt.len());
            assert_eq!(chunk.tokens, prompt[chunk.start..end]);
            assert_eq!(chunk.pages.len(), end.div_ceil(page));
            for position in chunk.start..end {
                self.device.compute(prompt, &chunk.pages[..position / page + 1], position);
            }
        }
    }

    fn decode(&mut self, rows: &[Row]) {
        let Limits { pages, batch, .. } = self.job.limits;
        self.prefills = 0;
        self.seen.decodes += 1;
        assert!(rows.len() <= batch && rows.is_sorted_by_key(|row| row.sample));
        assert_eq!(rows.iter().map(|row| row.slot).collect::<BTreeSet<_>>().len(), rows.len(), "rows have slots of their own");
        let oldest = self.unfinished.first().copied();
        assert_eq!(oldest, rows.first().map(|row| self.scheduler.names(row.sample)), "the oldest sample waits");
        let tables: Vec<Vec<u32>> = rows.iter().map(|row| self.scheduler.pages(row.sample).collect()).collect();
        let mut readers = vec![0; pages];
        tables.iter().flatten().for_each(|page| readers[*page as usize] += 1);
        for (row, table) in rows.iter().zip(&tables) {
            assert_eq!(readers[table[table.len() - 1] as usize], 1, "a page that others read is written");
            let name = self.scheduler.names(row.sample);
            let token = self.device.row(row, name, table, self.seen.decodes);
            self.draws.back_mut().unwrap().push((row.sample, row.index, token));
            self.seen.unknown += row.token.is_none() as usize;
            self.seen.replayed += row.replayed as usize;
            let known = self.scheduler.tokens(row.sample).get(row.index).copied();
            assert_eq!(known, row.replayed.then_some(token));
            if row.index + 1 == self.job.request(name.0).max_tokens || row.position + 1 == self.job.answers[&name].0.len() {
                self.unfinished.remove(&name);
            }
        }
    }

    /// Reports all draws but those of the last `late` steps, and ends the samples that are done.
    fn report(&mut self, late: usize) {
        while self.draws.len() > late {
            for (sample, index, token) in self.draws.pop_front().unwrap() {
                let drawn = self.scheduler.drawn(sample, index, token);
                if drawn == Drawn::Last || drawn == Drawn::New && token == STOP {
                    let name = self.scheduler.names(sample);
                    let known = self.scheduler.tokens(sample).to_vec();
                    let (answer, prompt) = &self.job.answers[&name];
                    assert_eq!(known, answer[*prompt..]);
                    assert_eq!(self.scheduler.end(sample), Ended { prompt: name.0, sample: name.1, tokens: known });
                    assert!(self.ended.insert(name), "{name:?} ends twice");
                    self.unfinished.remove(&name);
                }
            }
        }
    }

    fn end(mut self) -> Seen {
        assert!(self.ended.iter().eq(self.job.answers.keys().collect::<BTreeSet<_>>()), "samples are left behind");
        let Stats { used, host_used, prefilled, .. } = self.scheduler.stats();
        assert_eq!((used, host_used), (0, 0), "pages are still held");
        let prefixes: usize = self.job.requests.iter().map(|r| r.tokens.len() - 1).sum();
        self.seen.again = prefilled as usize - prefixes;
        // Each decode step brings the oldest sample on, which stays until it ends.
        assert!(self.seen.decodes <= self.job.answers.values().map(|(tokens, prompt)| tokens.len() - prompt + 1).sum());
        self.seen
    }
}

/// Says which trace failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the trace of seed {} failed", self.0);
        }
    }
}

#[test]
fn random_traces_run_as_a_plain_simulation_does() {
    const TRACES: u64 = 100_000;
    let workers = std::thread::available_parallelism().unwrap().get() as u64;
    let work = |first: u64| {
        let mut seen = Seen::default();
        for seed in (first..TRACES).step_by(workers as usize) {
            let _seed = Seed(seed);
            let mut random = Random::new(seed << 20);
            let job = Job::tiny(&mut random);
            seen = seen.add(Trace::run(&job, &mut random));
        }
        seen
    };
    let seen = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|first| scope.spawn(move || work(first))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(Seen::default(), Seen::add)
    });
    println!("{TRACES} traces: {seen:?}");
    for count in [seen.copies, seen.swaps, seen.unknown, seen.replayed, seen.again] {
        assert!(count > 10_000, "{seen:?}");
    }
}

/// A job of the shape of real ones, all lengths within their ranges.
#[derive(Clone, Copy)]
struct Shape {
    pages: usize,
    batch: usize,
    samples: usize,
    /// Samples of a prompt.
    each: (usize, usize),
    prompt: (usize, usize),
    answer: (usize, usize),
}

/// How such a job went.
#[derive(Default, Debug)]
struct Run {
    decodes: usize,
    prefills: usize,
    moves: usize,
    /// Rows as a share of the batch, a mean over the decode steps in which samples wait.
    rows: f64,
    /// Pages that running samples hold or read as a share of the cache, a mean over those of these steps in which rows are left.
    pages: f64,
    /// A sample.
    preemptions: f64,
    replays: f64,
    /// Prompt tokens computed, as a multiple of the prompts' tokens.
    prefilled: f64,
}

/// Runs a job whose tokens are read a step late.
fn shaped(shape: &Shape) -> Run {
    let Shape { pages, batch, samples, each, prompt, answer } = *shape;
    let mut random = Random::new(1);
    let mut between = |range: (usize, usize)| range.0 + random.below(range.1 + 1 - range.0);
    let limits = Limits { page: 64, pages, host_pages: pages / 2, batch, chunk: 2048 };
    let mut scheduler = Scheduler::new(limits).unwrap();
    let mut run = Run::default();
    let mut lengths: HashMap<(u64, u32), usize> = HashMap::new();
    let (mut prompts, mut prefixes) = (0, 0);
    let (mut queued, mut starved) = (0, 0);
    let mut late: Vec<Row> = Vec::new();
    loop {
        while scheduler.wants_more() && lengths.len() < samples {
            let numbers: Vec<u32> = (0..between(each) as u32).collect();
            lengths.extend(numbers.iter().map(|sample| ((prompts, *sample), between(answer))));
            let tokens = vec![1; between(prompt)];
            prefixes += tokens.len() - 1;
            scheduler.push(Request { prompt: prompts, tokens, samples: numbers, max_tokens: answer.1 }).unwrap();
            prompts += 1;
        }
        assert!(scheduler.stats().waiting < batch + each.1, "requests pile up");
        let Some(step) = scheduler.step() else { break };
        run.moves += step.moves.len();
        let rows = match step.work {
            Work::Prefill(_) => Vec::new(),
            Work::Decode(rows) => rows,
        };
        run.prefills += rows.is_empty() as usize;
        run.decodes += !rows.is_empty() as usize;
        assert!(run.prefills < 1000 + run.decodes, "only prompts are computed");
        let Stats { preempted, waiting, used, idle, .. } = scheduler.stats();
        if !rows.is_empty() && preempted + waiting > 0 {
            queued += 1;
            run.rows += rows.len() as f64 / batch as f64;
            if rows.len() < batch {
                starved += 1;
                run.pages += (used - idle) as f64 / pages as f64;
            }
        }
        for row in std::mem::replace(&mut late, rows) {
            let drawn = scheduler.drawn(row.sample, row.index, 1);
            if drawn != Drawn::Ignored && row.index + 1 == lengths[&scheduler.names(row.sample)] {
                scheduler.end(row.sample);
            }
        }
    }
    let Stats { preemptions, replays, prefilled, .. } = scheduler.stats();
    run.rows /= queued as f64;
    run.pages /= starved as f64;
    run.preemptions = preemptions as f64 / lengths.len() as f64;
    run.replays = replays as f64 / lengths.len() as f64;
    run.prefilled = prefilled as f64 / prefixes as f64;
    run
}

#[test]
fn the_cache_is_full_while_samples_wait_for_pages() {
    let difficulty = Shape { pages: 2000, batch: 512, samples: 1000, each: (4, 32), prompt: (100, 400), answer: (200, 4000) };
    let shapes = [
        Shape { each: (32, 32), ..difficulty },
        Shape { each: (1, 1), ..difficulty },
        Shape { each: (8, 8), answer: (200, 400), samples: 4000, batch: 1024, ..difficulty },
        Shape { each: (16, 16), prompt: (1000, 3000), answer: (1000, 8000), samples: 300, ..difficulty },
        difficulty,
    ];
    for shape in shapes {
        let run = shaped(&shape);
        println!("{:?} samples a prompt: {run:?}", shape.each);
        assert!(run.pages >= 0.97, "{run:?}");
        assert!(run.preemptions < 4.0 && run.replays < 1.0 && run.prefilled < 5.0, "{run:?}");
    }
    // A sample that comes back from host memory needs none of its prefix where that fills no page.
    let run = shaped(&Shape { each: (1, 1), prompt: (10, 64), ..difficulty });
    println!("1 sample a short prompt: {run:?}");
    assert!(run.preemptions > 1.0 && run.prefilled < 1.5, "{run:?}");
}

#[test]
fn rows_are_taken_while_samples_wait_for_rows() {
    for each in [1, 4, 32] {
        let shape =
            Shape { pages: 20_000, batch: 256, samples: 2000, each: (each, each), prompt: (100, 400), answer: (200, 2000) };
        let run = shaped(&shape);
        println!("{each} samples a prompt: {run:?}");
        assert!(run.rows >= 0.97, "{run:?}");
        assert!(run.prefills * 10 < run.decodes && run.preemptions == 0.0 && run.prefilled == 1.0, "{run:?}");
    }
}

/// Its next token may not be known. In the sixth step the last of three equals loses its five pages, more than there is room for in host memory, just
/// after the youngest lost its one.
#[test]
fn nobody_comes_back_in_the_step_that_preempted_it() {
    let limits = Limits { page: 1, pages: 17, host_pages: 1, batch: 4, chunk: 1 };
    let request =
        |prompt, samples, max_tokens| Request { prompt, tokens: vec![1], samples: (0..samples).collect(), max_tokens };
    let job = Job::new(limits, vec![request(0, 3, 10), request(1, 1, 4), request(2, 1, 6)], usize::MAX);
    for seed in 0..20 {
        assert!(Trace::run(&job, &mut Random::new(seed)).replayed > 0);
    }
}

/// Where a running sample needs a page, the prefix that is needed last is dropped first.
#[test]
fn prefixes_are_dropped_from_the_end_of_the_line() {
    let limits = Limits { page: 8, pages: 38, host_pages: 0, batch: 32, chunk: 64 };
    let mut scheduler = Scheduler::new(limits).unwrap();
    // Four that take a second page each at their fourth token, 28 that fill one, then three prompts of a page.
    for (prompt, tokens, samples, max_tokens) in [(0, 6, 4, 20), (1, 1, 28, 8), (2, 9, 1, 9), (3, 9, 1, 9), (4, 9, 1, 9)] {
        scheduler.push(Request { prompt, tokens: vec![1; tokens], samples: (0..samples).collect(), max_tokens }).unwrap();
    }
    // Runs a step, then ends so many of the 28: whose prompts it computed, or whose samples.
    let mut step = |ends: usize| match scheduler.step().unwrap().work {
        Work::Prefill(chunks) => ("prefill", chunks.iter().map(|chunk| chunk.prompt).collect()),
        Work::Decode(rows) => {
            rows.iter().for_each(|row| assert_eq!(scheduler.drawn(row.sample, row.index, 1), Drawn::New));
            let mut prompts: Vec<u64> = rows.iter().map(|row| scheduler.names(row.sample).0).collect();
            let short = rows.iter().map(|row| row.sample).filter(|sample| scheduler.names(*sample).0 == 1);
            let ended: Vec<SampleId> = short.take(ends).collect();
            ended.into_iter().for_each(|sample| drop(scheduler.end(sample)));
            prompts.dedup();
            ("decode", prompts)
        }
    };
    assert_eq!(step(0), ("prefill", vec![0]));
    assert_eq!(step(1), ("decode", vec![0, 1]));
    assert_eq!(step(0), ("prefill", vec![2, 3, 4]));
    assert_eq!(step(0), ("decode", vec![0, 1, 2]));
    assert_eq!(step(0), ("decode", vec![0, 1, 2]));
    // Four pages are taken, three were free.
    assert_eq!(step(3), ("decode", vec![0, 1, 2]));
    assert_eq!(step(1), ("decode", vec![0, 1, 2, 3]));
    assert_eq!(step(0), ("prefill", vec![4]));
}

#[test]
fn what_cannot_run_is_refused() {
    let limits = Limits { page: 4, pages: 4, host_pages: 0, batch: 2, chunk: 3 };
    for broken in [
        Limits { page: 0, ..limits },
        Limits { pages: 0, ..limits },
        Limits { batch: 0, ..limits },
        Limits { chunk: 0, ..limits },
    ] {
        assert_eq!(Scheduler::new(broken).err().unwrap().kind, Kind::DoesNotFit);
    }
    let mut scheduler = Scheduler::new(limits).unwrap();
    let request = |tokens: usize, samples: usize, max_tokens: usize| Request {
        prompt: 5,
        tokens: vec![1; tokens],
        samples: vec![0; samples],
        max_tokens,
    };
    for empty in [request(0, 1, 1), request(1, 0, 1), request(1, 1, 0)] {
        assert_eq!(scheduler.push(empty).unwrap_err().kind, Kind::Internal);
    }
    for (tokens, max_tokens) in [(8, 6), (13, 1), (1, 13), (1, usize::MAX)] {
        assert!(!limits.fits(tokens, max_tokens));
        let error = scheduler.push(request(tokens, 1, max_tokens)).unwrap_err();
        assert!(error.kind == Kind::DoesNotFit && error.message.contains("prompt 5"), "{error}");
    }
    assert_eq!(scheduler.step(), None);
    assert_eq!(scheduler.stats(), Stats { pages: 4, ..Stats::default() });
    for (tokens, max_tokens) in [(8, 5), (12, 1), (1, 12)] {
        assert!(limits.fits(tokens, max_tokens));
        Trace::run(&Job::new(limits, vec![request(tokens, 1, max_tokens)], usize::MAX), &mut Random::new(1));
    }
}
