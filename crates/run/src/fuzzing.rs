//! What a fuzzer calls: the entries through which foreign bytes come in, with everything behind them.
//!
//! The targets under `fuzz/` call these, and so do ordinary tests, with the corpus and with mutated runs. They return
//! nothing: not panicking, not taking memory without bound and not giving out unchecked bytes is what is tested.
//!
//! Hashes stop blind mutations early, but no attacker: they have no key. So a run is also tried with all its hashes
//! made to fit.

use crate::build::{RunBuilder, RunParams, RunSummary};
use crate::chain::{ChainReader, Nothing};
use crate::codec::Decoder;
use crate::commit::commit;
use crate::entry::RAW_ENTRY_LEN;
use crate::header::{self, HEADER_LEN};
use crate::pace::unpaced;
use crate::read::Run;
use crate::record::BatchReader;
use crate::trailer::{
    DIRECTORY_ENTRY_LEN, FOOTER_CONTEXT, FOOTER_LEN, Footer, TrailerLayout, directory_hash, page_hash,
};

/// Disks up to this size are also read and committed whole.
const SMALL: u64 = 8 << 20;

/// Opens a run, as it is and with its hashes made to fit. If it can be opened, verifies it, reads it in every way and
/// builds it again from its own batches.
pub fn run_open(bytes: &[u8]) {
    open_and_use(bytes);
    if let Some(forged) = forge(bytes) {
        open_and_use(&forged);
    }
}

fn open_and_use(bytes: &[u8]) {
    let Ok(run) = Run::open(bytes) else { return };
    let verified = run.verify(&mut unpaced);
    let geometry = *run.geometry();
    if geometry.virtual_size() <= SMALL {
        let mut disk = vec![0; geometry.virtual_size() as usize];
        let mut chain = ChainReader::new(std::slice::from_ref(&run), Nothing).expect("memory for a decoder");
        let read = chain.read_at(0, &mut disk);
        let mut base = Vec::new();
        let committed = commit(&run, &mut base, &mut unpaced);
        if verified.is_ok() {
            assert!(read.is_ok() && committed.is_ok() && base == disk, "a verified run reads everywhere");
        }
    }
    let Ok(mut reader) = run.reader() else { return };
    let params = RunParams {
        virtual_size: geometry.virtual_size(),
        cluster_bits: geometry.cluster_bits(),
        backing: run.backing().cloned(),
    };
    let mut builder = RunBuilder::new(Vec::new(), params).expect("an opened run has a possible geometry");
    let mut decoder = Decoder::new().expect("memory for a decoder");
    let mut position = 0;
    while let Ok(Some((batch, next))) = reader.batch(position, 64 << 10) {
        if builder.accept_batch(&batch, &mut decoder).is_err() {
            break;
        }
        position = next;
    }
    // Ranges of zeros on a huge disk can ask for tables of any size; that is for quotas to refuse, not for us.
    if verified.is_ok() && builder.projected_len() <= SMALL * 16 {
        let (summary, _) = builder.finish().expect("a vector takes any bytes");
        // Its file may differ, for another program may lay one out less tightly.
        let expected = RunSummary { file_len: summary.file_len, ..run.summary() };
        assert_eq!(summary, expected, "a verified run builds again to the same");
    }
}

/// Makes all hashes of a run fit what they cover, the header included; `None` if the footer's sizes do not fit the
/// file.
pub fn forge(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let trailer = mend_footer(&mut bytes)?;
    let directory = trailer.directory_offset as usize;
    for number in 0..trailer.pages() {
        let (offset, entries) = trailer.page(number);
        let (offset, known) = (offset as usize, directory + number * DIRECTORY_ENTRY_LEN);
        let hash = page_hash(&bytes[offset..offset + entries * RAW_ENTRY_LEN]);
        bytes.copy_within(offset..offset + 8, known);
        bytes[known + 8..known + DIRECTORY_ENTRY_LEN].copy_from_slice(&hash);
    }
    let footer = trailer.footer_offset as usize;
    let hash = directory_hash(&bytes[directory..footer]);
    bytes[footer + 128..footer + 160].copy_from_slice(&hash);
    mend_footer(&mut bytes)?;
    let header = header::encode(&trailer.layout, trailer.footer_offset, None);
    bytes[..HEADER_LEN].copy_from_slice(&header);
    Some(bytes)
}

fn mend_footer(bytes: &mut [u8]) -> Option<TrailerLayout> {
    let len = bytes.len();
    let footer: &mut [u8; FOOTER_LEN] = bytes.last_chunk_mut()?;
    let hash = blake3::derive_key(FOOTER_CONTEXT, &footer[..FOOTER_LEN - 32]);
    footer[FOOTER_LEN - 32..].copy_from_slice(&hash);
    Footer::decode(footer, len as u64).ok().map(|(_, trailer)| trailer)
}

/// Reads a batch. The first bytes choose the disk: its cluster size, and its size in clusters.
pub fn run_batch(bytes: &[u8]) {
    let Some(([bits, clusters @ ..], batch)) = bytes.split_first_chunk::<3>() else { return };
    let cluster_bits = 12 + u32::from(bits % 7);
    let clusters = u64::from(u16::from_le_bytes(*clusters)) + 1;
    let params = RunParams { virtual_size: clusters << cluster_bits, cluster_bits, backing: None };
    let mut builder = RunBuilder::new(Vec::new(), params).expect("a small disk is possible");
    let geometry = *builder.geometry();
    let mut last = 0;
    if let Ok(mut reader) = BatchReader::new(batch, geometry, 0) {
        while let Ok(Some(record)) = reader.next_record() {
            assert!(record.address >= last && geometry.is_cluster(record.address), "records ascend on the disk");
            last = record.address + 1;
        }
    }
    let mut decoder = Decoder::new().expect("memory for a decoder");
    if builder.accept_batch(batch, &mut decoder).is_ok() {
        let (_, run) = builder.finish().expect("a vector takes any bytes");
        let run = Run::open(run).expect("what was built can be opened");
        run.verify(&mut unpaced).expect("what was built is whole");
    }
}
