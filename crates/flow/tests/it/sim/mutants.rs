//! Bugs planted on purpose, each outside of the code under test: a store, a registry, a worker or a scheduler that breaks one
//! promise which the orchestrator is built on. The simulator must find each.

/// One planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutant {
    /// Records have effect under any fence.
    RecordIgnoresFence,
    /// Publishes have effect under any fence.
    PublishIgnoresFence,
    /// Records have effect after a run's end.
    RecordAfterEnd,
    /// New runs are made beside live ones.
    ClaimIgnoresLiveRun,
    /// A run is taken over by whoever looked at it, however long ago.
    TakeoverIgnoresWhatWasSeen,
    /// A run that is taken over keeps its fence.
    TakeoverKeepsFence,
    /// A run that is taken over keeps the number of its last attempt.
    TakeoverKeepsAttempt,
    /// A claim whose reply was lost is not found again.
    LostClaimForgotten,
    /// Runs are released under any fence.
    ReleaseIgnoresFence,
    /// Runs that were released are offered to nobody.
    ReleasedForgotten,
    /// Every owner counts as gone.
    AdoptionIgnoresLiveness,
    /// Leases are judged by the clock on the wall of whoever looks.
    LeaseByWallClock,
    /// The lease is taken once and never renewed.
    HeartbeatRenewsNothing,
    /// After an outage leases that ran out count.
    NoDoubtAfterOutage,
    /// A publish tells nobody.
    ChangeNotTold,
    /// The registry is asked through a cache that is half a minute old.
    StaleLook,
    /// The feed of publishes leaves one out.
    FeedSkips,
    /// The registry says yes to everything.
    RegistrySaysYes,
    /// A publish that others wait for is not entered in the registry.
    PublishWithoutRegistry,
    /// A publish puts its files in place one after the other.
    PublishInHalves,
    /// A publish whose reply was lost is made again without asking.
    BlindRetry,
    /// The cursor moves when a tick is seen, before its run is claimed.
    CursorBeforeClaim,
    /// The cursor is never kept.
    CursorNeverKept,
    /// The cursor is set to each claimed tick, also to an older one.
    CursorGoesBack,
    /// A look finds files that are not there.
    LookSaysYes,
    /// One more task than there are slots.
    OneSlotTooMany,
    /// The limit of a job's active runs is not told to the executor.
    RunsNotLimited,
    /// Slots of pools are counted for each process by itself.
    SlotsPerProcess,
    /// The limit of a job's active runs is kept by each process for itself.
    RunsLimitedPerProcess,
    /// Slots of pools come back with a run's end only.
    SlotsNotGivenBack,
    /// A wish for slots whose reply was lost takes others when it comes again.
    SlotsTakenTwice,
    /// Executors are told that they stand in the zone that jobs name, wherever they do.
    ZoneOfOthers,
    /// A tick that is skipped moves the cursor and leaves no run.
    SkipLeavesNothing,
}

impl Mutant {
    pub(super) const ALL: [Self; 33] = [
        Self::RecordIgnoresFence,
        Self::PublishIgnoresFence,
        Self::RecordAfterEnd,
        Self::ClaimIgnoresLiveRun,
        Self::TakeoverIgnoresWhatWasSeen,
        Self::TakeoverKeepsFence,
        Self::TakeoverKeepsAttempt,
        Self::LostClaimForgotten,
        Self::ReleaseIgnoresFence,
        Self::ReleasedForgotten,
        Self::AdoptionIgnoresLiveness,
        Self::LeaseByWallClock,
        Self::HeartbeatRenewsNothing,
        Self::NoDoubtAfterOutage,
        Self::ChangeNotTold,
        Self::StaleLook,
        Self::FeedSkips,
        Self::RegistrySaysYes,
        Self::PublishWithoutRegistry,
        Self::PublishInHalves,
        Self::BlindRetry,
        Self::CursorBeforeClaim,
        Self::CursorNeverKept,
        Self::CursorGoesBack,
        Self::LookSaysYes,
        Self::OneSlotTooMany,
        Self::RunsNotLimited,
        Self::SlotsPerProcess,
        Self::RunsLimitedPerProcess,
        Self::SlotsNotGivenBack,
        Self::SlotsTakenTwice,
        Self::ZoneOfOthers,
        Self::SkipLeavesNothing,
    ];
}
