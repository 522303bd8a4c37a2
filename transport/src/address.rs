//! Where a peer can be reached, and who says so.
//!
//! ```text
//! told        by `set_peer`: the groups' logs say it       stays until another is told
//! introduced  by the peer, or by one who claims to be it   dialled first; one failure disproves it
//! ```
//! Both are kept, because an introduction proves nothing:
//! 1. while a node's connection is broken, somebody introduces it under a wrong address; 2. the right
//!    one is forgotten; 3. nobody ever dials the node again.
//!
//! As it is, the right one is dialled after the wrong one has failed. A node that did move introduces
//! itself until it is dialled.

use multiraft_engine::traits::PeerAddress;

/// A peer's addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    told: Option<PeerAddress>,
    introduced: Option<PeerAddress>,
}

impl Addresses {
    /// The one to dial next.
    pub fn dialled(&self) -> Option<&PeerAddress> {
        self.introduced.as_ref().or(self.told.as_ref())
    }

    /// Whether `set_peer` never told one.
    pub fn is_only_introduced(&self) -> bool {
        self.told.is_none()
    }

    /// `set_peer` tells one; returns whether that is news. It is dialled in place of an introduced
    /// one, but one that was told before is not: several groups repeat what they have in their logs.
    pub fn tell(&mut self, address: PeerAddress) -> bool {
        let is_new = self.told.as_ref() != Some(&address);
        if is_new {
            *self = Self {
                told: Some(address),
                introduced: None,
            };
        }
        is_new
    }

    /// The peer introduces itself; returns whether that is news.
    pub fn introduce(&mut self, address: PeerAddress) -> bool {
        let is_new = self.dialled() != Some(&address);
        if is_new {
            self.introduced = Some(address).filter(|address| self.told.as_ref() != Some(address));
        }
        is_new
    }

    /// Nobody answered there, or another node; returns whether that changed anything.
    pub fn disprove(&mut self, address: &PeerAddress) -> bool {
        let is_introduced = self.introduced.as_ref() == Some(address);
        if is_introduced {
            self.introduced = None;
        }
        is_introduced
    }

    /// The peer answered there: what was introduced while it was dialled is forgotten, but what was
    /// told since `before` is not. Returns whether that changed anything.
    pub fn confirm(&mut self, before: &Self, address: &PeerAddress) -> bool {
        let is_other = !self.moved(before, address) && self.dialled() != Some(address);
        if is_other {
            let told = self.told.as_ref();
            self.introduced = Some(address.clone()).filter(|address| told != Some(address));
        }
        is_other
    }

    /// Whether `set_peer` told another than this `address` since `before`.
    pub fn moved(&self, before: &Self, address: &PeerAddress) -> bool {
        self.told != before.told && self.told.as_ref() != Some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> PeerAddress {
        let host = "peer".to_owned();
        PeerAddress { host, port }
    }

    #[test]
    fn an_introduced_address_is_dialled_until_it_fails_or_another_is_told() {
        let mut known = Addresses::default();
        assert!(known.introduce(at(1)) && known.is_only_introduced());
        assert!(known.tell(at(2)) && !known.is_only_introduced());
        assert_eq!(known.dialled(), Some(&at(2)));
        assert!(known.introduce(at(3)) && !known.introduce(at(3)));
        assert!(!known.tell(at(2)), "a repetition is no news");
        assert_eq!(known.dialled(), Some(&at(3)));
        assert!(!known.disprove(&at(2)) && known.disprove(&at(3)));
        assert_eq!(known.dialled(), Some(&at(2)));
        assert!(!known.introduce(at(2)), "it was told already");
        assert!(!known.disprove(&at(2)), "what was told stays");
        assert!(known.introduce(at(4)) && known.introduce(at(2)));
        assert!(!known.disprove(&at(2)), "what was told stays");
    }

    #[test]
    fn an_address_that_answers_stays_unless_another_was_told_meanwhile() {
        let mut before = Addresses::default();
        before.tell(at(1));
        for (told, introduced, want) in
            [(1, None, 1), (1, Some(3), 1), (2, None, 2), (2, Some(3), 3)]
        {
            let mut known = before.clone();
            known.tell(at(told));
            introduced.map(|port| known.introduce(at(port)));
            assert_eq!(known.moved(&before, &at(1)), told == 2);
            known.confirm(&before, &at(1));
            assert_eq!(known.dialled(), Some(&at(want)), "{told} {introduced:?}");
        }
        let mut known = Addresses::default();
        known.introduce(at(5));
        let before = known.clone();
        known.introduce(at(6));
        assert!(known.confirm(&before, &at(5)));
        assert_eq!(known, before);
        known.tell(at(5));
        assert!(!known.moved(&before, &at(5)), "it is told where it is");
    }
}
