//! Processes that are killed while they work: by kill -9, at moments and in an order that follow from a seed.

use std::time::Duration;

use headworks_testkit::TempPostgres;

use crate::{
    crew::{Chance, Serving, pass, until},
    ledger::Site,
    project::Project,
};

/// The longest pause between the moment that a kill is due and the kill.
const AIM_MS_MAX: u64 = 150;

/// Kills one of the processes and starts it anew, so many times while the commands of the site are carried out: one kill
/// each time that another share of them has ended. Then lets the work end.
pub(crate) fn killed(seed: u64, kills: usize, site: &Site, crew: &[&dyn Fn() -> Serving]) {
    println!("seed {seed}: {kills} kills");
    let mut chance = Chance::new(seed);
    let mut serving: Vec<Serving> = crew.iter().map(|start| start()).collect();
    let all = site.hours() * 2;
    for kill in 0..kills {
        until("some more commands", || (site.ends() >= all * kill / kills).then_some(()));
        pass(Duration::from_millis(chance.below(AIM_MS_MAX)));
        let victim = usize::try_from(chance.below(crew.len() as u64)).unwrap();
        let fresh = crew[victim];
        std::mem::replace(&mut serving[victim], fresh()).kill();
    }
    site.until_done();
    serving.into_iter().for_each(|serving| drop(serving.stop()));
    site.check();
}

/// One `up`, and beside it a command that carries out a job of its own; either may be killed.
fn killed_on_sqlite(seed: u64, kills: usize, days: u64) {
    const ASIDE: [&str; 6] = ["backfill", "aside", "--from", "2026-01-01", "--to", "2026-02-28"];
    let site = Site::on_sqlite(days);
    site.project.write("jobs/aside.sql", "/* job\nowner: tests\ngrain: day\nstart: 2026-01-01\n*/\nSELECT 5 AS n\n");
    println!("seed {seed}: {kills} kills");
    let mut chance = Chance::new(seed);
    let up = || site.serve("up", &[]);
    let aside = || Serving::start(quiet(&site.project, &ASIDE));
    let (mut serving, mut beside) = (up(), aside());
    let all = site.hours() * 2;
    for kill in 0..kills {
        until("some more commands", || (site.ends() >= all * kill / kills).then_some(()));
        pass(Duration::from_millis(chance.below(AIM_MS_MAX)));
        if chance.below(3) == 0 {
            std::mem::replace(&mut beside, aside()).kill();
        } else {
            // A second one is refused while the first lives.
            serving.kill();
            serving = up();
        }
    }
    site.until_done();
    until("the command's end", || beside.has_ended().then_some(()));
    drop(beside);
    site.project.ok(&ASIDE);
    serving.stop();
    let aside = site.project.ok(&["sql", "select count(*), count(distinct ds), min(n) from aside", "--format", "csv"]);
    assert_eq!(aside.lines().nth(1).unwrap(), "59,59,5");
    site.check();
}

fn quiet(project: &Project, args: &[&str]) -> std::process::Command {
    let mut command = project.command(args);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command
}

/// Two schedulers and three workers.
fn killed_on_postgres(seed: u64, kills: usize, days: u64) {
    let site = Site::on_postgres(&TempPostgres::shared().unwrap().create_database().unwrap(), days);
    let scheduler = || site.serve("scheduler", &[]);
    let worker = || site.serve("worker", &["--tasks", "3"]);
    killed(seed, kills, &site, &[&scheduler, &worker, &worker, &scheduler, &worker]);
    // Each would have held two processes up for a second.
    assert_eq!(site.count("select deadlocks from pg_stat_database where datname = current_database()"), 0);
}

#[test]
fn twenty_kills_on_sqlite() {
    killed_on_sqlite(1, 20, 3);
}

#[test]
fn twenty_kills_on_postgres() {
    killed_on_postgres(1, 20, 3);
}

#[test]
#[ignore = "long: two hundred kills over two thousand commands and two thousand publishes"]
fn long_two_hundred_kills_on_sqlite() {
    killed_on_sqlite(2, 200, 42);
}

#[test]
#[ignore = "long: two hundred kills over two thousand commands and two thousand publishes"]
fn long_two_hundred_kills_on_postgres() {
    killed_on_postgres(2, 200, 42);
}
