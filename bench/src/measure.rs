//! Clocks, counters and the disk's own speed.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

/// Processor, memory and disk in one line.
pub(crate) fn machine() -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu =
        cpu.lines().find_map(|l| l.strip_prefix("model name")).map_or("", |l| l.trim_start_matches([' ', '\t', ':']));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory =
        memory.lines().next().unwrap_or_default().split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok());
    format!("{cores} cores of {cpu}, {} GiB, load {}", memory.unwrap_or(0) >> 20, load())
}

/// The system's load over the last minute.
pub(crate) fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or_default().to_owned()
}

/// The program under test: of the same profile as this.
pub(crate) fn headworks() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("headworks");
    ensure!(path.exists(), "{} is not built: run it through make bench", path.display());
    Ok(path)
}

/// What a process cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    /// The most resident memory, in bytes.
    pub(crate) rss: u64,
}

/// Runs a command to its end. Its memory is looked at every 20 ms while it runs, from its own `/proc` page.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<(Cost, String)> {
    let cpu_before = children_cpu();
    let begun = Instant::now();
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start the program")?;
    let status = format!("/proc/{}/status", child.id());
    let watch = thread::spawn(move || {
        let mut most = 0;
        while let Ok(text) = fs::read_to_string(&status) {
            let Some(line) = text.lines().find_map(|l| l.strip_prefix("VmHWM:")) else { break };
            most = line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(most);
            thread::park_timeout(Duration::from_millis(20));
        }
        most << 10
    });
    let stderr = child.stderr.take().context("no stderr")?;
    let errors = thread::spawn(move || std::io::read_to_string(stderr).unwrap_or_default());
    let stdout = std::io::read_to_string(child.stdout.take().context("no stdout")?)?;
    let status = child.wait()?;
    let wall = begun.elapsed();
    let errors = errors.join().unwrap_or_default();
    ensure!(status.success(), "the program failed: {errors}");
    let rss = watch.join().unwrap_or(0);
    Ok((Cost { wall, cpu: children_cpu().saturating_sub(cpu_before), rss }, stdout))
}

/// CPU time of the children that have ended, user and system.
fn children_cpu() -> Duration {
    let fields = fields_of("/proc/self/stat");
    // Fields 16 and 17 of proc(5), counted behind the name; Linux counts 100 ticks a second.
    Duration::from_millis((number_at(&fields, 13) + number_at(&fields, 14)) * 10)
}

/// CPU time of this process, user and system.
pub(crate) fn own_cpu() -> Duration {
    cpu_in("/proc/self/stat")
}

/// CPU time of another process, without its children.
pub(crate) fn cpu_of(process: u32) -> Duration {
    cpu_in(&format!("/proc/{process}/stat"))
}

/// CPU time of another process with its children, those that have ended and those that live, but not with theirs.
pub(crate) fn cpu_of_family(process: u32) -> anyhow::Result<Duration> {
    let parent = process.to_string();
    let mut ticks = 0;
    for entry in fs::read_dir("/proc").context("list the processes")? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) else { continue };
        let fields = fields_of(&format!("/proc/{name}/stat"));
        // Fields 14 to 17 of proc(5): its own time and that of children that have ended. Field 4 is the parent.
        let counted = match name == parent {
            true => 11..15,
            false if fields.get(1) == Some(&parent) => 11..13,
            false => continue,
        };
        ticks += counted.map(|at| number_at(&fields, at)).sum::<u64>();
    }
    Ok(Duration::from_millis(ticks * 10))
}

/// A process's share of the memory, in bytes: what it shares with others counts in part.
pub(crate) fn pss(process: u32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).context("read a process's memory")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("the system does not tell it")?;
    Ok(line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10)
}

/// Lets time pass.
pub(crate) fn pass(time: Duration) {
    let end = Instant::now() + time;
    while let Some(rest) = end.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
        thread::park_timeout(rest);
    }
}

/// Asks every few milliseconds until there is an answer.
pub(crate) fn wait_until<T>(what: &str, mut ask: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    const PATIENCE: Duration = Duration::from_secs(300);
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} until {what}");
        pass(Duration::from_millis(5));
    }
}

fn cpu_in(stat: &str) -> Duration {
    let fields = fields_of(stat);
    Duration::from_millis((number_at(&fields, 11) + number_at(&fields, 12)) * 10)
}

/// What stands behind the name of a process in its `stat`; nothing when it is gone.
fn fields_of(stat: &str) -> Vec<String> {
    let text = fs::read_to_string(stat).unwrap_or_default();
    text.rsplit(')').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn number_at(fields: &[String], at: usize) -> u64 {
    fields.get(at).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// What the disk itself takes for so many publishes by `threads` writers at once: a new file in a new folder, written and
/// fsynced with its folder and the one above, and an appended and synced log page for every `per_commit` of them.
pub(crate) fn fsync_floor(
    folder: &Path,
    publishes: usize,
    file_bytes: usize,
    threads: usize,
    per_commit: usize,
) -> anyhow::Result<Duration> {
    fs::create_dir_all(folder)?;
    let begun = Instant::now();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || -> std::io::Result<()> {
                    let table = folder.join(format!("t{thread}"));
                    fs::create_dir_all(&table)?;
                    for n in (thread..publishes).step_by(threads) {
                        publish(&table, n, file_bytes)?;
                    }
                    Ok(())
                })
            })
            .collect();
        let log = scope.spawn(move || -> std::io::Result<()> {
            let mut log = File::create(folder.join("log"))?;
            for _ in 0..publishes / per_commit.max(1) {
                log.write_all(&[7; 32 << 10])?;
                log.sync_data()?;
            }
            Ok(())
        });
        for writer in writers.into_iter().chain([log]) {
            writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
        }
        anyhow::Ok(())
    })?;
    let took = begun.elapsed();
    fs::remove_dir_all(folder)?;
    Ok(took)
}

/// One publish as the disk sees it.
pub(crate) fn publish(table: &Path, n: usize, bytes: usize) -> std::io::Result<()> {
    let partition = table.join(format!("ds={n}"));
    fs::create_dir(&partition)?;
    File::open(table)?.sync_all()?;
    let mut file = File::create_new(partition.join("data.parquet"))?;
    file.write_all(&vec![7; bytes])?;
    file.sync_all()?;
    File::open(&partition)?.sync_all()
}

/// Milliseconds with two places.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

/// The value below which `share` of the times lie.
pub(crate) fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a short list"
    )]
    let at = ((times.len() as f64 - 1.0) * share).round() as usize;
    times.get(at).copied().unwrap_or_default()
}
