//! The names of what we put into a QEMU. Block node names have at most 31 bytes, and short ones keep the guest waiting
//! less: QEMU reads its monitor byte by byte.

use understudy_model::DiskId;

use crate::driver::NAME_PREFIX;

/// The map that holds what a cut's cycle must carry; one on each disk of the cut, while it is open.
pub const DUE_MAP: &str = "understudy-due";

/// What a node or export of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The copy-before-write filter in front of a disk.
    Filter,
    /// The scratch file behind the filter.
    Scratch,
    /// What shows the disk as it was; also the export of it.
    Snapshot,
    /// The export of a live disk.
    Live,
}

impl Part {
    const fn letter(self) -> char {
        match self {
            Part::Filter => 'f',
            Part::Scratch => 's',
            Part::Snapshot => 'x',
            Part::Live => 'l',
        }
    }

    /// The name of this part of `disk`.
    pub fn name(self, disk: DiskId) -> String {
        format!("{NAME_PREFIX}{}{}", self.letter(), disk.0)
    }

    /// Whether `name` is that of such a part, of whatever disk.
    pub fn owns(self, name: &str) -> bool {
        let rest = name.strip_prefix(NAME_PREFIX).and_then(|rest| rest.strip_prefix(self.letter()));
        rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit() || b == b'-'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_tell_what_they_are() {
        for part in [Part::Filter, Part::Scratch, Part::Snapshot, Part::Live] {
            let name = part.name(DiskId(u16::MAX));
            assert!(name.len() <= 31, "{name}");
            let owners = [Part::Filter, Part::Scratch, Part::Snapshot, Part::Live].map(|p| p.owns(&name));
            assert_eq!(owners.iter().filter(|o| **o).count(), 1);
            assert!(part.owns(&name));
        }
        assert!(!Part::Filter.owns("understudy-f"));
        assert!(!Part::Filter.owns("understudy-foreign"));
        assert!(!Part::Filter.owns("libvirt-f1"));
    }
}
