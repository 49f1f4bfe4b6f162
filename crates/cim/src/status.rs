//! CIM status codes: how an operation of the protocol failed. What a method answers by itself is its return value, not a status.

use std::fmt;

macro_rules! status_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal $symbol:literal,)*) => {
        /// A CIM status code (DSP0200), without the one that says success.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum StatusCode {
            $($(#[$doc])* $name = $number,)*
        }

        impl StatusCode {
            /// Its name in the specification.
            pub fn symbol(self) -> &'static str {
                match self {
                    $(StatusCode::$name => $symbol,)*
                }
            }
        }
    };
}

status_codes! {
    /// Any failure that has no code of its own.
    Failed = 1 "CIM_ERR_FAILED",
    /// The caller may not do that.
    AccessDenied = 2 "CIM_ERR_ACCESS_DENIED",
    /// No such namespace.
    InvalidNamespace = 3 "CIM_ERR_INVALID_NAMESPACE",
    /// A parameter of the operation is missing, unknown or wrong.
    InvalidParameter = 4 "CIM_ERR_INVALID_PARAMETER",
    /// No such class.
    InvalidClass = 5 "CIM_ERR_INVALID_CLASS",
    /// No such object.
    NotFound = 6 "CIM_ERR_NOT_FOUND",
    /// The operation is not offered for this.
    NotSupported = 7 "CIM_ERR_NOT_SUPPORTED",
    /// The class has subclasses.
    ClassHasChildren = 8 "CIM_ERR_CLASS_HAS_CHILDREN",
    /// The class has instances.
    ClassHasInstances = 9 "CIM_ERR_CLASS_HAS_INSTANCES",
    /// No such superclass.
    InvalidSuperclass = 10 "CIM_ERR_INVALID_SUPERCLASS",
    /// The object exists.
    AlreadyExists = 11 "CIM_ERR_ALREADY_EXISTS",
    /// The class has no such property.
    NoSuchProperty = 12 "CIM_ERR_NO_SUCH_PROPERTY",
    /// A value of another type than declared.
    TypeMismatch = 13 "CIM_ERR_TYPE_MISMATCH",
    /// The query language is not known.
    QueryLanguageNotSupported = 14 "CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED",
    /// The query cannot be read, or asks for what is not there.
    InvalidQuery = 15 "CIM_ERR_INVALID_QUERY",
    /// The method exists but nobody carries it out.
    MethodNotAvailable = 16 "CIM_ERR_METHOD_NOT_AVAILABLE",
    /// The class has no such method.
    MethodNotFound = 17 "CIM_ERR_METHOD_NOT_FOUND",
    /// The namespace is not empty.
    NamespaceNotEmpty = 20 "CIM_ERR_NAMESPACE_NOT_EMPTY",
    /// The enumeration does not exist, has timed out, or belongs to somebody else.
    InvalidEnumerationContext = 21 "CIM_ERR_INVALID_ENUMERATION_CONTEXT",
    /// The time out asked for is not offered.
    InvalidOperationTimeout = 22 "CIM_ERR_INVALID_OPERATION_TIMEOUT",
    /// The pull was given up.
    PullHasBeenAbandoned = 23 "CIM_ERR_PULL_HAS_BEEN_ABANDONED",
    /// The pull cannot be given up.
    PullCannotBeAbandoned = 24 "CIM_ERR_PULL_CANNOT_BE_ABANDONED",
    /// Filters are not offered.
    FilteredEnumerationNotSupported = 25 "CIM_ERR_FILTERED_ENUMERATION_NOT_SUPPORTED",
    /// Going on after an error is not offered.
    ContinuationOnErrorNotSupported = 26 "CIM_ERR_CONTINUATION_ON_ERROR_NOT_SUPPORTED",
    /// A limit of the server.
    ServerLimitsExceeded = 27 "CIM_ERR_SERVER_LIMITS_EXCEEDED",
    /// The server is going down.
    ServerIsShuttingDown = 28 "CIM_ERR_SERVER_IS_SHUTTING_DOWN",
}

impl StatusCode {
    /// Its number on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }
}

/// A status code and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Status {
    /// The code.
    pub code: StatusCode,
    /// What went wrong with what.
    pub message: String,
}

impl Status {
    /// A code with its sentence.
    pub fn new(code: StatusCode, message: impl Into<String>) -> Self {
        Status { code, message: message.into() }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.symbol(), self.message)
    }
}
