//! The few command-line words the workload understands: disks by position, numbers by `--name value`.

use std::collections::BTreeMap;

/// Options that stand alone; every other option takes a value.
const FLAGS: [&str; 1] = ["new"];

/// Parsed words of one command.
#[derive(Debug, Default)]
pub struct Args {
    /// Words that are no options, in order: the disks.
    pub disks: Vec<String>,
    options: BTreeMap<String, String>,
}

impl Args {
    /// Sorts words into disks and options.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Args::default();
        let mut words = words;
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                None => args.disks.push(word),
                Some(name) if FLAGS.contains(&name) => drop(args.options.insert(name.into(), String::new())),
                Some(name) => {
                    let value = words.next().ok_or_else(|| format!("--{name} needs a value"))?;
                    args.options.insert(name.into(), value);
                }
            }
        }
        Ok(args)
    }

    /// Takes a number out, if it was given.
    pub fn number(&mut self, name: &str) -> Result<Option<u64>, String> {
        let Some(text) = self.options.remove(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("--{name} {text} is not a number"))
    }

    /// Takes a number out, or the default.
    pub fn number_or(&mut self, name: &str, default: u64) -> Result<u64, String> {
        Ok(self.number(name)?.unwrap_or(default))
    }

    /// Takes a word out, if it was given.
    pub fn word(&mut self, name: &str) -> Option<String> {
        self.options.remove(name)
    }

    /// Refuses what no one took: a misspelt option must not be ignored silently.
    pub fn finish(&self) -> Result<(), String> {
        match self.options.keys().next() {
            Some(name) => Err(format!("unknown option --{name}")),
            None => Ok(()),
        }
    }

    /// The only disk of a command that works on one.
    pub fn one_disk(&self) -> Result<&str, String> {
        match self.disks.as_slice() {
            [disk] => Ok(disk),
            other => Err(format!("one disk is needed, {} were given", other.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn disks_flags_and_numbers_are_told_apart() {
        let mut args = parse("/dev/vda --rate 50 --new /dev/vdb").unwrap();
        assert_eq!(args.disks, ["/dev/vda", "/dev/vdb"]);
        assert_eq!(args.number("rate"), Ok(Some(50)));
        assert_eq!(args.word("new").as_deref(), Some(""));
        assert_eq!(args.finish(), Ok(()));
    }

    #[test]
    fn what_is_misspelt_is_refused() {
        assert!(parse("--rate").is_err());
        assert!(parse("--rate x").unwrap().number("rate").is_err());
        assert!(parse("--raet 5").unwrap().finish().is_err());
    }
}
