//! Which processes may carry out which runs.

use std::{collections::BTreeSet, fmt};

use headworks_domain::JobName;

/// The pool of tasks that name none, where a process says what it takes. No pool of the settings may have this name.
pub const DEFAULT_POOL: &str = "default";

/// The pool, over all processes, of the runs of a job that says `max_active_runs`. No pool of the settings has such a name.
pub fn job_pool(job: &JobName) -> String {
    format!("{JOB_POOLS}{job}")
}

/// How the names begin of the pools of jobs.
pub const JOB_POOLS: &str = "job:";

/// Where a run may be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Placement {
    /// In this zone only; in any unless given.
    pub zone: Option<String>,
    /// The pools that its tasks lie in, [`DEFAULT_POOL`] for those that name none; of a run that is nobody's in particular, none.
    pub pools: BTreeSet<String>,
}

/// What a process takes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Takes {
    /// The zone that it stands in. It takes runs of this zone, and those of none.
    pub zone: Option<String>,
    /// It takes only runs whose tasks all lie in these pools; in any unless given.
    pub pools: Option<BTreeSet<String>>,
    /// Pools in which runs of its own wait already: just now it takes none of these.
    pub full: BTreeSet<String>,
}

impl Takes {
    /// True when the process may carry such a run out.
    pub fn may(&self, placement: &Placement) -> bool {
        let in_zone = placement.zone.is_none() || placement.zone == self.zone;
        let in_pools = self.pools.as_ref().is_none_or(|pools| placement.pools.is_subset(pools));
        in_zone && in_pools && placement.pools.is_disjoint(&self.full)
    }
}

impl fmt::Display for Placement {
    /// As `zone eu for pools etl, default`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.zone.as_deref(), Some(&self.pools))
    }
}

impl fmt::Display for Takes {
    /// As `zone eu for pools etl, default`; nothing for a process that takes what has no zone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.zone.as_deref(), self.pools.as_ref())
    }
}

fn write(f: &mut fmt::Formatter<'_>, zone: Option<&str>, pools: Option<&BTreeSet<String>>) -> fmt::Result {
    let zone = zone.map(|zone| format!("zone {zone}"));
    let pools = pools.filter(|pools| !pools.is_empty()).map(|pools| {
        let names: Vec<&str> = pools.iter().map(String::as_str).collect();
        format!("{} {}", if names.len() == 1 { "pool" } else { "pools" }, names.join(", "))
    });
    let parts: Vec<String> = zone.into_iter().chain(pools).collect();
    f.write_str(&parts.join(" for "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &str) -> BTreeSet<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    fn zone(name: &str) -> Option<String> {
        Some(name.to_owned()).filter(|name| !name.is_empty())
    }

    /// What a process of a zone takes with `--pools`, of a run of a zone whose tasks lie in pools.
    fn check(of: (&str, Option<&str>), run: (&str, &str), expected: bool) {
        let takes = Takes { zone: zone(of.0), pools: of.1.map(set), full: set("busy") };
        let placement = Placement { zone: zone(run.0), pools: set(run.1) };
        assert_eq!(takes.may(&placement), expected, "{takes:?} {placement:?}");
    }

    #[test]
    fn a_zone_and_pools_say_who_takes_what() {
        check(("", None), ("", "default"), true);
        check(("", None), ("eu", "default"), false);
        check(("eu", None), ("eu", "default etl"), true);
        check(("eu", None), ("us", "default"), false);
        check(("eu", None), ("", "default"), true);
        check(("", Some("etl")), ("", "etl"), true);
        check(("", Some("etl")), ("", "default"), false);
        check(("", Some("etl")), ("", "default etl"), false);
        check(("", Some("default etl api")), ("", "default etl"), true);
        check(("eu", Some("etl")), ("us", "etl"), false);
        check(("", Some("etl")), ("", ""), true);
        check(("", None), ("", "busy etl"), false);
    }

    #[test]
    fn they_read_as_people_say_them() {
        let placement = |zone_name, pools| Placement { zone: zone(zone_name), pools: set(pools) }.to_string();
        assert_eq!(placement("eu", "etl default"), "zone eu for pools default, etl");
        assert_eq!(placement("", "etl"), "pool etl");
        assert_eq!(placement("eu", ""), "zone eu");
        assert_eq!(Takes::default().to_string(), "");
    }
}
