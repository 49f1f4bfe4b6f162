//! Foreign bytes as a VM's definition: refused, or written back as they were understood.
#![no_main]

use understudy_hypervisor::machine::Definition;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(definition) = Definition::from_json(bytes) {
        let again = Definition::from_json(&definition.to_json()).expect("what was written is read");
        assert_eq!(again, definition);
    }
});
