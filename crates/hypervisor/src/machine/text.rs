//! The texts a definition may hold. Each knows its length and its characters, and none can be made otherwise, so that
//! whoever builds a command line from them has nothing left to check.

use std::fmt;

/// Why a text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: {rule}")]
pub struct TextError {
    what: &'static str,
    rule: &'static str,
    /// What was given, cut to a printable length.
    text: String,
}

fn refuse(what: &'static str, rule: &'static str, text: &str) -> TextError {
    TextError { what, rule, text: text.chars().take(60).collect() }
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $rule:literal, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Most bytes.
            pub const MAX: usize = $max;

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = TextError;
            fn try_from(text: String) -> Result<Self, TextError> {
                let allowed: fn(&str) -> bool = $allowed;
                match (1..=$max).contains(&text.len()) && allowed(&text) {
                    true => Ok(Self(text)),
                    false => Err(refuse($what, $rule, &text)),
                }
            }
        }

        impl TryFrom<&str> for $name {
            type Error = TextError;
            fn try_from(text: &str) -> Result<Self, TextError> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> String {
                text.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn all(text: &str, extra: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
}

fn printable_ascii(text: &str) -> bool {
    text.bytes().all(|b| (b' '..=b'~').contains(&b))
}

text!(
    /// A VM's name as people know it. Never part of a path.
    VmName, "VM name", 255, "1 to 255 bytes, no control characters, no space at either end",
    |text| text.trim() == text && !text.chars().any(char::is_control));

text!(
    /// A machine type of QEMU's, such as `pc-q35-10.0`.
    MachineType, "machine type", 64, "letters, digits, '.', '_', '+', '-'",
    |text| all(text, "._+-"));

text!(
    /// A processor model of QEMU's, such as `host` or `Skylake-Client-v3`.
    CpuModel, "processor model", 64, "letters, digits, '.', '_', '-'",
    |text| all(text, "._-"));

text!(
    /// The name of a processor feature, such as `avx2` or `hv-relaxed`.
    FeatureName, "processor feature", 64, "letters, digits, '.', '_', '-'",
    |text| all(text, "._-"));

text!(
    /// What a processor feature is set to: `on`, `off` or a number.
    FeatureValue, "value of a processor feature", 64, "letters, digits, '.', '_', '-', ' '",
    |text| all(text, "._- "));

text!(
    /// The serial number of a disk, which the guest may know it by.
    Serial, "serial number", 128, "1 to 128 printable ASCII characters",
    printable_ascii);

text!(
    /// The name of a network. What it means is decided by each host for itself.
    NetworkName, "network name", 64, "letters, digits, '.', '_', '-'",
    |text| all(text, "._-"));

text!(
    /// A kernel's command line.
    CommandLine, "kernel command line", 4095, "1 to 4095 printable ASCII characters",
    printable_ascii);

text!(
    /// The name of a blob: the BLAKE3 hash of its bytes in lower-case hexadecimal.
    BlobName, "blob name", 64, "64 lower-case hexadecimal digits",
    |text| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));

text!(
    /// An Ethernet address, lower case, of a single station.
    Mac, "MAC address", 17, "six pairs of lower-case hexadecimal digits joined by ':', not a group address",
    is_mac);

fn is_mac(text: &str) -> bool {
    let pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let pairs: Vec<&str> = text.split(':').collect();
    let group = || u8::from_str_radix(pairs[0], 16).is_ok_and(|first| first & 1 != 0);
    pairs.len() == 6 && pairs.iter().all(|p| pair(p)) && !group() && text != "00:00:00:00:00:00"
}

impl BlobName {
    /// The name of a blob with this hash.
    pub fn of(hash: &blake3::Hash) -> Self {
        Self(hash.to_hex().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_could_reach_beyond_their_place_are_refused() {
        assert!(VmName::try_from("Büro, 2. Stock").is_ok());
        assert!(VmName::try_from("a\nb").is_err());
        assert!(VmName::try_from(" a").is_err());
        assert!(VmName::try_from("").is_err());
        assert!(MachineType::try_from("pc-q35-10.0").is_ok());
        assert!(MachineType::try_from("q35,firmware=/etc/shadow").is_err());
        assert!(CpuModel::try_from("host,+vmx").is_err());
        assert!(FeatureValue::try_from("0x1fff").is_ok());
        assert!(FeatureValue::try_from("on,enforce").is_err());
        assert!(Serial::try_from("a\u{7f}").is_err());
        assert!(NetworkName::try_from("../lan").is_err());
        assert!(BlobName::try_from("../../etc/shadow").is_err());
        assert!(BlobName::try_from("A".repeat(64)).is_err());
        assert!(CommandLine::try_from("console=ttyS0 quiet").is_ok());
        assert!(CommandLine::try_from("x".repeat(4096)).is_err());
    }

    #[test]
    fn an_ethernet_address_is_of_one_station() {
        assert!(Mac::try_from("52:54:00:12:34:56").is_ok());
        for wrong in
            ["53:54:00:12:34:56", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "52:54:00:12:34", "52:54:00:12:34:5G"]
        {
            assert!(Mac::try_from(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_refusal_says_what_was_wrong_with_what() {
        let err = NetworkName::try_from("a b").unwrap_err();
        assert_eq!(err.to_string(), "\"a b\" is no network name: letters, digits, '.', '_', '-'");
    }
}
