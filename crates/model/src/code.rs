//! The return codes of the service, one table for every face.
//!
//! Values and names are those documented for the methods of `Msvm_ReplicationService` (the `ReturnValue` list that
//! its 26 own methods share).

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// What a method of the service answers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum ReturnCode { $($(#[$doc])* $name = $value,)* }

        impl ReturnCode {
            /// Every code, in ascending order.
            pub const ALL: &[ReturnCode] = &[$(ReturnCode::$name,)*];

            /// The documented name of the code.
            pub const fn name(self) -> &'static str {
                match self { $(ReturnCode::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// Done; nothing to follow.
    Completed = 0, "Completed with No Error";
    /// The parameters were accepted and a job goes on with the work.
    JobStarted = 4096, "Method Parameters Checked - Job Started";
    /// The rest: I/O errors, no space, damage.
    Failed = 32768, "Failed";
    /// The caller lacks the right. Tested before existence, so that absence does not leak.
    AccessDenied = 32769, "Access Denied";
    /// Legal, but not offered by this build, provider or kind of relationship.
    NotSupported = 32770, "Not Supported";
    /// The answer was lost after the point of no return.
    StatusUnknown = 32771, "Status is unknown";
    /// Reached, but no answer in time.
    Timeout = 32772, "Timeout";
    /// Right type, wrong value; a required value missing; a reference to something unknown.
    InvalidParameter = 32773, "Invalid parameter";
    /// An operation or a lock is in the way now.
    SystemInUse = 32774, "System is in use";
    /// The state graph says no.
    InvalidState = 32775, "Invalid state for this operation";
    /// The text cannot be read as the declared type.
    IncorrectDataType = 32776, "Incorrect data type";
    /// The peer or this service is off or cannot be reached.
    NotAvailable = 32777, "System is not available";
    /// A budget is used up.
    OutOfMemory = 32778, "Out of memory";
    /// A path, manifest, disk or certificate that should be there is not.
    FileNotFound = 32779, "File not found";
}

impl ReturnCode {
    /// The number on the wire.
    pub const fn value(self) -> u32 {
        self as u32
    }

    /// The code with this number.
    pub fn from_value(value: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|c| c.value() == value)
    }

    /// Whether the call did, or began to do, what was asked.
    pub const fn is_success(self) -> bool {
        matches!(self, ReturnCode::Completed | ReturnCode::JobStarted)
    }
}

impl fmt::Display for ReturnCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.value(), self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_number() {
        for code in ReturnCode::ALL {
            assert_eq!(ReturnCode::from_value(code.value()), Some(*code));
        }
        assert_eq!(ReturnCode::from_value(1), None);
        assert!(ReturnCode::ALL.windows(2).all(|w| w[0].value() < w[1].value()));
    }
}
