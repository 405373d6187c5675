//! A disk that runs full, really: what a person is told, and that the lake stays as it was.

use std::process::Stdio;

use headworks_testkit::SmallDisk;

use crate::project::{Outcome, Project, outcome};

/// A job whose days take about 600 KiB each: its words do not compress.
const WORDS: &str = "/* job
owner: tests
schedule: \"@daily\"
start: 2026-01-01
*/
SELECT value AS n, md5(concat(value, '{{ ds }}')) AS word FROM generate_series(1, 30000)
";

/// A project with a small disk at `small`.
struct Full {
    project: Project,
    disk: SmallDisk,
}

impl Full {
    fn new(settings: &str, bytes: u64) -> Self {
        let project = Project::nothing().file("headworks.toml", settings).file("jobs/words.sql", WORDS);
        let small = project.path().join("small");
        std::fs::create_dir(&small).unwrap();
        Self { disk: SmallDisk::mount(&small, bytes).unwrap(), project }
    }

    fn run(&self, args: &[&str]) -> Outcome {
        let mut command = self.disk.command(env!("CARGO_BIN_EXE_headworks"));
        command.arg("-C").arg(self.project.path()).args(args).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        outcome(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    fn day(&self, day: u32) -> Outcome {
        self.run(&["run", "words", "--ds", &format!("2026-01-{day:02}")])
    }

    fn rows(&self) -> String {
        let outcome = self.run(&["sql", "SELECT count(*) AS n, count(DISTINCT ds) AS days FROM words"]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.stdout.lines().nth(1).unwrap().to_owned()
    }

    fn orphans(&self) -> usize {
        let outcome = self.run(&["gc", "--dry-run", "--json", "--set", "retention.orphans=0s"]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        json["removals"].as_array().unwrap().len()
    }
}

/// A command that ran out of room says so, and what to do.
fn assert_full(outcome: &Outcome, what: &str) {
    assert_eq!(outcome.code, 1, "{what}: {outcome:?}");
    let said = &outcome.stderr;
    assert!(said.contains("No space left on device") || said.contains("is full"), "{what}: {said}");
    assert!(said.contains("hint: free space on that disk"), "{what}: {said}");
}

#[test]
fn the_data_path_is_full() {
    let full = Full::new("[storage]\npath = \"small/lake\"\n", 4 << 20);
    assert_eq!(full.day(1).code, 0);
    for left in [0, 128 << 10] {
        full.disk.fill(left).unwrap();
        let outcome = full.day(2);
        assert_full(&outcome, &format!("{left} bytes left"));
        assert!(outcome.stderr.contains("small/lake/data/main/words/ds=2026-01-02"), "{outcome:?}");
        assert_eq!(full.rows(), "30000,1");
        assert_eq!(full.orphans(), 0, "the file that did not fit takes no room");
        full.disk.free().unwrap();
    }
    let again = full.day(2);
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(full.rows(), "60000,2");
    assert_eq!(full.orphans(), 0);
}

#[test]
fn the_disk_of_the_metadata_database_is_full() {
    let full = Full::new("[metadata]\nurl = \"sqlite:small/metadata.db\"\n", 4 << 20);
    assert_eq!(full.day(1).code, 0);
    let mut published = 1;
    // From no room at all, over room to begin and not to publish, to enough: the disk gives out at another step each time.
    let kib = [0, 8, 24, 32, 36, 40, 44, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 512];
    let mut refused = 0;
    for (n, left) in kib.iter().enumerate() {
        full.disk.fill(left << 10).unwrap();
        let outcome = full.day(u32::try_from(n).unwrap() + 2);
        full.disk.free().unwrap();
        if outcome.code == 0 {
            published += 1;
        } else {
            refused += 1;
            assert_full(&outcome, &format!("{left} KiB left"));
        }
        assert_eq!(full.rows(), format!("{},{published}", published * 30_000), "{left} KiB left: {outcome:?}");
    }
    assert!(refused > 2 && published > 2, "{refused} refused, {published} published");
    let all = full.run(&["backfill", "words", "--from", "2026-01-01", "--to", "2026-01-19"]);
    assert_eq!(all.code, 0, "{all:?}");
    assert_eq!(full.rows(), "570000,19");
}

#[test]
fn the_disk_of_everything_is_full() {
    // Logs and spilled rows are below the project too, which here is the disk itself.
    let full =
        Full::new("[metadata]\nurl = \"sqlite:small/metadata.db\"\n[storage]\npath = \"small/lake\"\n", 64 << 20);
    std::os::unix::fs::symlink(full.project.path().join("small"), full.project.path().join(".headworks")).unwrap();
    assert_eq!(full.day(1).code, 0);
    full.disk.fill(5 << 20).unwrap();
    let all = ["backfill", "words", "--from", "2026-01-01", "--to", "2026-01-19"];
    // The second time there is a little room again: the catalog's log is gone, and perhaps one more day fits.
    for time in ["first", "second"] {
        assert_full(&full.run(&all), time);
        let rows = full.rows();
        let (n, days) = rows.split_once(',').unwrap();
        let days: u32 = days.parse().unwrap();
        assert_eq!(n.parse::<u32>().unwrap(), days * 30_000, "days are whole: {rows}");
        assert!((2..19).contains(&days), "{rows}");
    }
    full.disk.free().unwrap();
    let again = full.run(&all);
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(full.rows(), "570000,19");
}
