//! The kinds of faults, which of them a run has, and how often they happened.

use std::fmt;

use rand::Rng;
use rand::rngs::SmallRng;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Fault {
    /// A process ends; what was not synced is kept, lost or torn by sector.
    Crash,
    /// All processes end at once.
    CrashAll,
    /// A sync fails: its pages are lost and look clean; the log must never sync again.
    FailSync,
    /// The disk has no room for another segment.
    DiskFull,
    /// Syncs take many ticks.
    SlowDisk,
    /// Nothing is synced for longer than an election timeout.
    StuckDisk,
    /// Frames are lost.
    Drop,
    /// Frames arrive twice.
    Duplicate,
    /// Frames take long, and overtake each other.
    Delay,
    /// The nodes fall into two parts.
    Partition,
    /// One node hears nobody, or nobody hears it.
    OneWay,
    /// Some links are cut, so that not everybody reaches everybody.
    Partial,
    /// All that is under way between two nodes is lost.
    Reset,
    /// Clocks run at half to twice the rate.
    ClockRate,
    /// A process does nothing for a while, and then goes on as if nothing had happened.
    Pause,
    /// A peer is said to be gone that is not.
    FalseEvidence,
    /// State machines are slow.
    SlowApply,
    /// Voters become learners and back, leave and come again.
    Membership,
    /// Leadership is handed over.
    Transfer,
    /// A snapshot is made although it is not time for one.
    Snapshot,
    /// The connections that carry snapshots between two nodes break.
    BreakTransfer,
    /// A byte of a snapshot's file rots.
    Rot,
    /// A disk is replaced by an empty one, the groups are bootstrapped there again, and the node
    /// leaves and joins.
    Wipe,
    /// A node leaves a group.
    Leave,
    /// A node joins a group, or asks for its vote.
    Join,
    /// A group is given up in a node's log, as a repair does it.
    Lose,
}

const ALL: [Fault; 26] = [
    Fault::Crash,
    Fault::CrashAll,
    Fault::FailSync,
    Fault::DiskFull,
    Fault::SlowDisk,
    Fault::StuckDisk,
    Fault::Drop,
    Fault::Duplicate,
    Fault::Delay,
    Fault::Partition,
    Fault::OneWay,
    Fault::Partial,
    Fault::Reset,
    Fault::ClockRate,
    Fault::Pause,
    Fault::FalseEvidence,
    Fault::SlowApply,
    Fault::Membership,
    Fault::Transfer,
    Fault::Snapshot,
    Fault::BreakTransfer,
    Fault::Rot,
    Fault::Wipe,
    Fault::Leave,
    Fault::Join,
    Fault::Lose,
];

impl fmt::Display for Fault {
    /// As in `--faults`: `one-way`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, character) in format!("{self:?}").chars().enumerate() {
            if at > 0 && character.is_uppercase() {
                f.write_str("-")?;
            }
            write!(f, "{}", character.to_ascii_lowercase())?;
        }
        Ok(())
    }
}

/// A set of kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultSet(u32);

impl FaultSet {
    /// Every kind.
    pub fn all() -> Self {
        Self::of(&ALL)
    }

    /// These kinds.
    pub fn of(faults: &[Fault]) -> Self {
        Self(faults.iter().fold(0, |set, &f| set | 1 << f as u8))
    }

    /// From names separated by commas; `all` and `none` are names too.
    ///
    /// # Errors
    /// The first name that is none.
    pub fn parse(names: &str) -> Result<Self, String> {
        let mut set = Self(0);
        for name in names.split(',').filter(|name| !name.is_empty()) {
            set = match (name, ALL.iter().find(|fault| fault.to_string() == name)) {
                ("all", _) => Self::all(),
                ("none", _) => Self(0),
                (_, Some(&fault)) => Self(set.0 | Self::of(&[fault]).0),
                (_, None) => {
                    let known: Vec<String> = ALL.iter().map(ToString::to_string).collect();
                    return Err(format!("no fault {name}; known are {}", known.join(", ")));
                }
            };
        }
        Ok(set)
    }

    /// A random part, each kind by its own coin.
    #[must_use]
    pub fn draw(self, rng: &mut SmallRng) -> Self {
        let mut set = Self(0);
        for fault in ALL {
            let is_in = rng.random_bool(0.55); // drawn for all, so that plans of one seed stay alike
            if is_in && self.has(fault) {
                set = Self(set.0 | Self::of(&[fault]).0);
            }
        }
        set
    }

    /// Whether a kind is in it.
    pub fn has(self, fault: Fault) -> bool {
        self.0 & (1 << fault as u8) != 0
    }

    /// Without one kind.
    #[must_use]
    pub fn without(self, fault: Fault) -> Self {
        Self(self.0 & !(1 << fault as u8))
    }

    /// Its kinds.
    pub fn iter(self) -> impl Iterator<Item = Fault> {
        ALL.into_iter().filter(move |&fault| self.has(fault))
    }

    /// How many.
    pub fn len(self) -> usize {
        self.iter().count()
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// How often each kind happened.
#[derive(Debug, Clone, Default)]
pub struct Counters([u64; ALL.len()]);

impl Counters {
    /// It happened.
    pub fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// How often.
    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_shown() {
        for fault in ALL {
            assert_eq!(
                FaultSet::parse(&fault.to_string()),
                Ok(FaultSet::of(&[fault]))
            );
        }
        assert_eq!(FaultSet::parse("all"), Ok(FaultSet::all()));
        assert_eq!(FaultSet::parse("one-way,drop").map(FaultSet::len), Ok(2));
        assert!(FaultSet::parse("earthquake").is_err());
    }
}
