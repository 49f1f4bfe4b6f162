//! The states, modes and health of a replication relationship, with the numbers clients of the API know.

use std::fmt;

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum $name { $($(#[$vdoc])* $variant = $value,)* }

        impl $name {
            /// Every value, in ascending order.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// The number in the API.
            pub const fn value(self) -> u16 {
                self as u16
            }

            /// The value with this number.
            pub fn from_value(value: u16) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.value() == value)
            }

            /// The word for logs, screens and JSON.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }

            /// The value with this word.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.name() == name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

numbered!(
    /// `ReplicationState` of a relationship. Values 17–21 of the API are internal to other products and never shown.
    State {
        /// No relationship.
        Disabled = 0, "disabled";
        /// The relationship is made, initial replication has not begun.
        Ready = 1, "ready";
        /// Initial replication is under way; on the replica from the moment its place is made.
        InitialReplication = 2, "initial-replication";
        /// Normal operation.
        Replicating = 3, "replicating";
        /// Prepared for planned failover: the VM is off and everything is on the replica.
        Prepared = 4, "prepared";
        /// Failed over, neither committed nor reverted.
        FailedOver = 5, "failed-over";
        /// The failover was made final.
        Committed = 6, "committed";
        /// Paused by an operator.
        Suspended = 7, "suspended";
        /// An error that retrying cannot cure; an operator must act.
        Critical = 8, "critical";
        /// The two sides may differ in ways nobody tracked; they must be compared.
        ResyncRequired = 9, "resync-required";
        /// The comparison is running.
        Resynchronizing = 10, "resynchronizing";
        /// The comparison is paused by an operator.
        ResyncSuspended = 11, "resync-suspended";
        /// A failover is being carried out.
        FailingOver = 12, "failing-over";
        /// A failback is being carried out.
        FailingBack = 13, "failing-back";
        /// The failback is done.
        FailedBack = 14, "failed-back";
        /// The set of disks is being changed.
        UpdatingDisks = 15, "updating-disks";
        /// Changing the set of disks failed.
        UpdateCritical = 16, "update-critical";
    }
);

numbered!(
    /// `ReplicationMode`: the role of this host for one VM.
    Mode {
        /// Not replicated.
        None = 0, "none";
        /// Its writes are tracked and sent.
        Primary = 1, "primary";
        /// A ready-to-start copy.
        Replica = 2, "replica";
        /// A throw-away VM made from a recovery point.
        Test = 3, "test";
        /// A copy of a copy, on a third host.
        Extended = 4, "extended";
    }
);

numbered!(
    /// `ReplicationHealth`: how well it goes. The worst of several conditions wins.
    Health {
        /// Replication is not enabled.
        NotApplicable = 0, "not-applicable";
        /// Progress is proven: see the rules in `engine`.
        Ok = 1, "ok";
        /// It works, but not as promised.
        Warning = 2, "warning";
        /// It does not work.
        Critical = 3, "critical";
    }
);

numbered!(
    /// `FailedOverReplicationType`: what kind of point a failover used.
    FailoverKind {
        /// Not failed over.
        None = 0, "none";
        /// A standard point.
        Regular = 1, "regular";
        /// An application-consistent point.
        Application = 2, "application-consistent";
        /// The last point of a planned failover.
        Planned = 3, "planned";
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_api() {
        assert_eq!(State::ALL.len(), 17);
        assert!(State::ALL.iter().enumerate().all(|(i, s)| usize::from(s.value()) == i));
        assert!(State::ALL.iter().all(|s| State::from_name(s.name()) == Some(*s)));
        assert_eq!(Mode::from_value(4), Some(Mode::Extended));
        assert_eq!(Health::from_value(4), None);
    }
}
