use headworks_domain::{ErrorKind, Interval};

use super::*;
use crate::{
    exec::{
        Takes,
        record::{Claim, Trigger},
        shape::{Request, RunLimits, RunShape},
    },
    plan::{OutsideOn, TaskKind, TaskOptions, TaskPlan},
};

fn at(secs: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_767_225_600 + secs, 0).unwrap()
}

fn file(name: &str) -> Arc<Question> {
    Arc::new(Question::File { file: name.to_owned() })
}

fn http(host: &str, n: usize) -> Arc<Question> {
    let http = format!("https://{host}/{n}");
    Arc::new(Question::Http { http, headers: BTreeMap::new(), expect: Vec::new() })
}

/// A board with runs that wait for one question each; the number of a run is its place in the list.
struct Test {
    board: Board,
    now: i64,
}

impl Test {
    fn serving() -> Self {
        Self { board: Board::new(8, &Takes::default(), true), now: 0 }
    }

    fn of_command() -> Self {
        Self { board: Board::new(8, &Takes::default(), false), now: 0 }
    }

    /// Adds a claimed run that asks every so many seconds.
    fn run(&mut self, questions: &[&Arc<Question>], every: u64, wait_timeout: Option<u64>) -> usize {
        let n = i64::try_from(self.board.runs.next()).unwrap();
        let interval = Interval::new(at(n * 3_600), at((n + 1) * 3_600)).unwrap();
        let every = Duration::from_secs(every);
        let name = |n: usize| -> headworks_domain::TaskName { format!("wait_{n}").parse().unwrap() };
        let outside: Vec<OutsideOn> = questions
            .iter()
            .enumerate()
            .map(|(n, question)| OutsideOn { task: name(n), question: Arc::clone(question), every })
            .collect();
        let task = |name, kind, after| TaskPlan { name, kind, after, options: TaskOptions::default() };
        let mut tasks: Vec<TaskPlan> =
            outside.iter().map(|wait| task(wait.task.clone(), TaskKind::Wait, Vec::new())).collect();
        tasks.push(task(
            "go".parse().unwrap(),
            TaskKind::Stage,
            outside.iter().map(|wait| wait.task.clone()).collect(),
        ));
        let request = Request { job: "j".parse().unwrap(), interval };
        let shape = RunShape {
            job: request.job.clone(),
            job_version: String::new(),
            table: None,
            interval,
            ds: interval.start().date_naive().into(),
            partitions: Vec::new(),
            waits: Vec::new(),
            outside,
            tasks,
            params: serde_json::Map::new(),
            limits: RunLimits { wait_timeout: wait_timeout.map(Duration::from_secs), ..RunLimits::default() },
            unplanned: None,
            plan: None,
        };
        let run = self.board.add(request, Trigger::Schedule, None, format!("r{n}").parse().unwrap(), shape);
        self.board.claimed(run, Claim { fence: 1, attempt: 1 }, at(self.now));
        run
    }

    /// What is to be looked at so many seconds after the beginning.
    fn looks(&mut self, secs: i64) -> Vec<Arc<Question>> {
        self.now = secs;
        self.board.tick(at(secs));
        let looked = |command| match command {
            Command::Inquire(question) => Some(question),
            _ => None,
        };
        self.board.take_commands().into_iter().filter_map(looked).collect()
    }

    fn answer(&mut self, question: &Arc<Question>, answer: Result<Answer, Failure>) {
        self.board.answered(question, answer, at(self.now));
    }

    fn not_yet(&mut self, question: &Arc<Question>) {
        self.answer(question, Ok(Answer::not_yet("not there")));
    }

    fn next_due(&self) -> Option<i64> {
        self.board.next_due().map(|due| {
            (due - at(0)).num_milliseconds().div_euclid(1_000) + i64::from(due.timestamp_subsec_millis() > 0)
        })
    }

    fn failure(&self, run: usize) -> Option<String> {
        self.board.runs[run].failure.as_ref().map(|failure| failure.message.clone())
    }

    fn waits(&self, run: usize) -> bool {
        !self.board.runs[run].missing.is_empty()
    }
}

fn passing(retry_after: Option<u64>) -> Failure {
    let failure = Failure::new(ErrorKind::Unavailable, "TEST", "it is away");
    Failure { retry_after: retry_after.map(Duration::from_secs), ..failure }
}

#[test]
fn equal_questions_are_asked_once_and_as_often_as_the_most_eager_wants() {
    let mut test = Test::serving();
    let same = file("a");
    for n in 0..1_000 {
        test.run(&[&file("a")], if n == 7 { 20 } else { 60 }, None);
    }
    assert_eq!(test.looks(0), [Arc::clone(&same)]);
    assert_eq!(test.looks(5), []);
    test.not_yet(&same);
    assert_eq!(test.next_due(), Some(25));
    assert_eq!((test.looks(24), test.looks(25)), (vec![], vec![Arc::clone(&same)]));
    test.not_yet(&same);
    // Somebody still more eager brings the next look forward, but not two of them together.
    test.run(&[&same], 5, None);
    test.run(&[&same], 5, None);
    assert_eq!((test.looks(29), test.looks(30)), (vec![], vec![Arc::clone(&same)]));
    test.answer(&same, Ok(Answer::yes("there")));
    assert!((0..1_002).all(|run| !test.waits(run)));
    assert_eq!(test.next_due(), None, "nothing is left to look at");
}

#[test]
fn a_place_that_hangs_holds_up_no_other() {
    let mut test = Test::serving();
    for n in 0..500 {
        test.run(&[&http("slow", n)], 60, None);
    }
    for n in 0..50 {
        test.run(&[&file(&format!("f{n}"))], 60, None);
        test.run(&[&http("other", n)], 60, None);
    }
    let first = test.looks(0);
    let of = |looks: &[Arc<Question>], place: &str| looks.iter().filter(|q| q.place() == place).count();
    for place in ["https://slow", "https://other", "files"] {
        assert_eq!(of(&first, place), LOOKS_PER_PLACE_MAX, "{place}");
    }
    // Nothing comes from the slow one; all others are looked at, in turn.
    let mut open = first;
    let mut seen = 0;
    for secs in 1..30 {
        let (hanging, others): (Vec<_>, Vec<_>) = open.into_iter().partition(|q| q.place() == "https://slow");
        assert_eq!(hanging.len(), LOOKS_PER_PLACE_MAX);
        seen += others.len();
        others.iter().for_each(|question| test.not_yet(question));
        open = hanging;
        open.extend(test.looks(secs));
    }
    assert_eq!(seen, 100);
}

#[test]
fn only_so_many_looks_are_under_way() {
    let mut test = Test::serving();
    for n in 0..200 {
        test.run(&[&http(&format!("host{}", n % 50), n)], 60, None);
    }
    let first = test.looks(0);
    assert_eq!(first.len(), LOOKS_MAX);
    first.iter().for_each(|question| test.not_yet(question));
    let second = test.looks(1);
    assert_eq!(second.len(), LOOKS_MAX);
    assert!(second.iter().all(|question| !first.contains(question)), "the others have their turn first");
}

#[test]
fn passing_failures_are_asked_again_after_growing_pauses() {
    let mut test = Test::serving();
    let run = test.run(&[&file("a")], 60, None);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let due = test.next_due().unwrap();
        let [question] = &test.looks(due)[..] else { panic!("one look") };
        test.answer(question, Err(passing(None)));
        pauses.push(test.next_due().unwrap() - due);
    }
    let near = |pause: i64, wanted: i64| (pause - wanted).abs() <= wanted / 5 + 1;
    let wanted = [60, 120, 240, 480, 600, 600, 600, 600];
    assert!(pauses.iter().zip(wanted).all(|(pause, wanted)| near(*pause, wanted)), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause >= 60), "never sooner than it asks for: {pauses:?}");
    assert!(test.waits(run), "it waits on");
    // An answer, even a no, ends the growing; a server that says when is heeded.
    for (answer, pause) in
        [(Ok(Answer::not_yet("no")), 60), (Err(passing(Some(300))), 300), (Ok(Answer::not_yet("no")), 60)]
    {
        let due = test.next_due().unwrap();
        let [question] = &test.looks(due)[..] else { panic!("one look") };
        test.answer(question, answer);
        assert_eq!(test.next_due(), Some(due + pause));
    }
}

#[test]
fn a_look_that_cannot_succeed_fails_who_waits_at_once() {
    let mut test = Test::serving();
    let (bad, good) = (file("bad"), file("good"));
    let both = test.run(&[&bad, &good], 60, None);
    let other = test.run(&[&good], 60, None);
    test.looks(0);
    test.answer(&bad, Err(Failure::new(ErrorKind::Invalid, "TEST", "it is no file")));
    assert_eq!(test.failure(both).unwrap(), "the wait for file `bad` failed: it is no file");
    assert!(!test.waits(both) && test.waits(other));
    test.answer(&good, Ok(Answer::yes("there")));
    assert!(!test.waits(other) && test.failure(other).is_none());
}

#[test]
fn who_has_waited_long_enough_gives_up_after_a_last_look() {
    let mut test = Test::serving();
    let question = file("a");
    let run = test.run(&[&question], 60, Some(90));
    let patient = test.run(&[&question], 60, None);
    for secs in [0, 60] {
        assert_eq!(test.looks(secs).len(), 1);
        test.not_yet(&question);
    }
    assert_eq!(test.next_due(), Some(90));
    assert_eq!(test.looks(90), [Arc::clone(&question)], "a last look");
    assert!(test.waits(run));
    test.now = 93;
    test.not_yet(&question);
    let failure = test.failure(run).unwrap();
    assert!(failure.ends_with("it waits for file `a` (not there)"), "{failure}");
    assert!(!test.waits(run) && test.waits(patient));
    assert_eq!(test.next_due(), Some(153));

    // Had it been there at last, the run would go.
    let mut test = Test::serving();
    let run = test.run(&[&question], 60, Some(30));
    test.looks(0);
    test.not_yet(&question);
    assert_eq!(test.looks(30).len(), 1);
    test.answer(&question, Ok(Answer::yes("there")));
    assert!(!test.waits(run) && test.failure(run).is_none());
}

#[test]
fn a_command_waits_as_long_as_it_was_told_to() {
    let mut test = Test::of_command();
    let question = file("a");
    let run = test.run(&[&question], 60, None);
    test.looks(0);
    assert_eq!(test.board.blocked_since(), None, "nobody knows yet");
    test.now = 2;
    test.not_yet(&question);
    assert_eq!(test.board.blocked_since(), Some(at(0)));
    // `--wait 20s`: over at 20, with a last look.
    test.board.close_blocked(at(0), TimeDelta::seconds(20), at(20));
    assert_eq!(test.board.blocked_since(), None, "no need to come back before the answer");
    assert_eq!(test.looks(20), [Arc::clone(&question)]);
    test.not_yet(&question);
    assert!(test.failure(run).is_some());

    // Without `--wait` the first no is the last.
    let mut test = Test::of_command();
    let run = test.run(&[&question], 60, None);
    test.looks(0);
    test.now = 2;
    test.not_yet(&question);
    test.board.close_blocked(at(2), TimeDelta::zero(), at(2));
    assert!(test.failure(run).unwrap().contains("file `a` (not there)"));
}

#[test]
fn what_nobody_asks_any_more_is_forgotten() {
    let mut test = Test::serving();
    let (one, other) = (file("a"), file("b"));
    let run = test.run(&[&one, &other], 60, None);
    test.looks(0);
    test.not_yet(&one);
    test.board.stop_waiting(run);
    assert_eq!(test.next_due(), None);
    // The answer of a look that was under way comes too late for everybody.
    test.not_yet(&other);
    assert_eq!(test.next_due(), None);
    assert!(test.board.outside.questions.is_empty() && test.board.outside.places.is_empty());
    // Whoever asks next is looked for at once.
    test.run(&[&one], 60, None);
    assert_eq!(test.looks(1), [one]);
}

#[test]
fn a_clock_that_is_set_moves_no_look() {
    let mut test = Test::serving();
    let question = file("a");
    test.run(&[&question], 60, None);
    test.looks(0);
    test.not_yet(&question);
    test.board.clock_set(TimeDelta::hours(-2));
    assert_eq!(test.next_due(), Some(60 - 7_200));
}
