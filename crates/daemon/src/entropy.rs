//! The randomness seam: identities of jobs and VMs, secrets of invitations.

use std::sync::Mutex;

use understudy_model::{JobId, VmId};

/// Where random bytes come from.
pub trait Entropy: Send + Sync + 'static {
    /// Fills the buffer.
    fn fill(&self, bytes: &mut [u8]);
}

impl dyn Entropy {
    /// A new random job id.
    pub fn job_id(&self) -> JobId {
        JobId(self.uuid())
    }

    /// A new random VM id, for a VM whose hypervisor names none.
    pub fn vm_id(&self) -> VmId {
        VmId(self.uuid())
    }

    /// A secret of 128 bits.
    pub fn secret(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        bytes
    }

    fn uuid(&self) -> uuid::Uuid {
        uuid::Builder::from_random_bytes(self.secret()).into_uuid()
    }
}

/// The operating system's generator, through the crypto provider.
#[derive(Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes).expect("the operating system's random generator does not fail once seeded");
    }
}

/// The same bytes for the same seed: for tests that compare whole outputs.
#[derive(Debug)]
pub struct SeededEntropy {
    stream: Mutex<blake3::OutputReader>,
}

impl SeededEntropy {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { stream: Mutex::new(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof()) }
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.stream.lock().unwrap_or_else(|e| e.into_inner()).fill(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_reproduces_its_identities_and_the_system_never_repeats() {
        let draw = |seed| {
            let entropy: Box<dyn Entropy> = Box::new(SeededEntropy::new(seed));
            (entropy.job_id(), entropy.vm_id(), entropy.secret())
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let system: Box<dyn Entropy> = Box::new(SystemEntropy);
        assert_ne!(system.secret(), system.secret());
        assert_eq!(system.job_id().0.get_version_num(), 4);
    }
}
