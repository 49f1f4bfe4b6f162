//! Runs on their way: what a receiver builds from batches is the run that was sent, and nothing else is accepted.

use proptest::prelude::*;
use understudy_run::pace::unpaced;
use understudy_run::{
    BatchError, BatchReader, BatchWriter, BuildError, ChainReader, Decoder, Encoder, Geometry, Nothing, Run,
    RunBuilder, RunDigester, Stored, cluster_hash, fuzzing,
};

use crate::support::{Fill, Layer, cases, cluster_bytes, layer, memory_run, params};

/// Sends the layer as a primary does: encode, hash, digest, batch.
fn send(virtual_size: u64, layer: &Layer, target: usize) -> (Vec<Vec<u8>>, understudy_run::RunDigest) {
    let geometry = Geometry::new(virtual_size, layer.bits).unwrap();
    let mut encoder = Encoder::new(1).unwrap();
    let mut writer = BatchWriter::new(geometry, target);
    let mut digester = RunDigester::new(geometry);
    let mut batches = Vec::new();
    for (number, fill) in &layer.clusters {
        let address = number << layer.bits;
        let raw = cluster_bytes(&geometry, address, *fill);
        match fill {
            Fill::Zeros => digester.push_zeros(address, 1).unwrap(),
            _ => digester.push_data(address, &cluster_hash(address, &raw)).unwrap(),
        }
        writer.push_encoded(address, encoder.encode(&raw), &raw).unwrap();
        if writer.is_full() {
            batches.extend(writer.take());
        }
    }
    batches.extend(writer.take());
    (batches, digester.finish())
}

fn receive(virtual_size: u64, bits: u32, batches: &[Vec<u8>]) -> Result<Run<Vec<u8>>, BuildError> {
    let mut builder = RunBuilder::new(Vec::new(), params(virtual_size, bits, None))?;
    let mut decoder = Decoder::new().unwrap();
    batches.iter().try_for_each(|batch| builder.accept_batch(batch, &mut decoder))?;
    Ok(Run::open(builder.finish()?.1).unwrap())
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn the_receiver_builds_the_run_that_was_sent(
        (virtual_size, layer) in (1u64..3000).prop_flat_map(|n| (Just(n * 512), layer(n * 512, 12..=18))),
        target in 1usize..200_000,
    ) {
        let (batches, digest) = send(virtual_size, &layer, target);
        let run = receive(virtual_size, layer.bits, &batches).unwrap();
        prop_assert_eq!(run.verify(&mut unpaced).unwrap().digest, digest);
        let built_here = memory_run(params(virtual_size, layer.bits, None), &layer.clusters);
        prop_assert!(built_here.source() == run.source(), "both sides' files are the same, byte for byte");
    }

    #[test]
    fn forwarding_sends_the_same_run_from_any_position(
        (virtual_size, layer) in (1u64..3000).prop_flat_map(|n| (Just(n * 512), layer(n * 512, 12..=16))),
        target in 1usize..100_000,
        skip in 0u64..20,
    ) {
        let run = memory_run(params(virtual_size, layer.bits, None), &layer.clusters);
        let from = skip << layer.bits;
        let mut reader = run.reader().unwrap();
        let (mut batches, mut position) = (Vec::new(), from);
        while let Some((batch, next)) = reader.batch(position, target).unwrap() {
            prop_assert!(next > position);
            batches.push(batch);
            position = next;
        }
        let rest = Layer { clusters: layer.clusters.clone().split_off(&skip), ..layer };
        let forwarded = receive(virtual_size, rest.bits, &batches).unwrap();
        let (_, digest) = send(virtual_size, &rest, target);
        prop_assert_eq!(forwarded.summary().digest, digest);
    }

    #[test]
    fn no_mutation_of_a_batch_gets_past_the_receiver_unseen(
        (virtual_size, layer) in (8u64..1000).prop_flat_map(|n| (Just(n * 512), layer(n * 512, 12..=14))),
        at in any::<prop::sample::Index>(),
        mask in 1u8..,
    ) {
        let (mut batches, digest) = send(virtual_size, &layer, 50_000);
        prop_assume!(!batches.is_empty());
        let which = at.index(batches.len());
        let byte = at.index(batches[which].len());
        batches[which][byte] ^= mask;
        if let Ok(run) = receive(virtual_size, layer.bits, &batches) {
            // Some changes still make a run, such as other bytes in a plain cluster. Its digest tells.
            let unchanged = memory_run(params(virtual_size, layer.bits, None), &layer.clusters);
            let equal = disk_of(&run) == disk_of(&unchanged) && run.extents().unwrap() == unchanged.extents().unwrap();
            prop_assert_eq!(run.summary().digest == digest, equal);
        }
    }

    #[test]
    fn batches_of_any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400), bits in 12u8..=18) {
        fuzzing::run_batch(&bytes);
        // The same, past the first checks: a disk, then version and cluster bits that fit.
        let mut framed = vec![bits - 12, 0, 1, 1, bits];
        framed.extend_from_slice(&bytes);
        fuzzing::run_batch(&framed);
    }
}

fn disk_of(run: &Run<Vec<u8>>) -> Vec<u8> {
    let mut disk = vec![1; run.geometry().virtual_size() as usize];
    ChainReader::new(std::slice::from_ref(run), Nothing).unwrap().read_at(0, &mut disk).unwrap();
    disk
}

fn geometry() -> Geometry {
    Geometry::new(64 << 12, 12).unwrap()
}

fn accept(batch: &[u8]) -> Result<(), BuildError> {
    let mut builder = RunBuilder::new(Vec::new(), params(64 << 12, 12, None)).unwrap();
    builder.accept_batch(batch, &mut Decoder::new().unwrap())
}

#[test]
fn a_batch_is_laid_out_as_documented() {
    let mut writer = BatchWriter::new(geometry(), 1000);
    writer.push_zeros(5 << 12, 2).unwrap();
    writer.push(8 << 12, Stored::Compressed, &[7; 300]).unwrap();
    writer.push(9 << 12, Stored::Plain, &[9; 4096]).unwrap();
    let batch = writer.take().unwrap();
    let expected = [&[1, 12, 5 << 2, 2, 1 << 2 | 1, 0xac, 0x02][..], &[7; 300], &[2], &[9; 4096]].concat();
    assert!(batch == expected);
    assert!(writer.take().is_none());
    assert!(writer.push_zeros(9 << 12, 1).is_err(), "batches of a run ascend too");
    assert!(writer.push_zeros(60 << 12, 5).is_err(), "and end where the disk ends");
    writer.push_zeros(63 << 12, 1).unwrap();
    assert_eq!(writer.take().unwrap(), [1, 12, 0xfc, 0x01, 1]);
}

#[test]
fn malformed_batches_are_refused_by_name() {
    let read =
        |bytes: &[u8]| BatchReader::new(bytes, geometry(), 4 << 12).and_then(|mut r| r.next_record().map(|_| ()));
    assert_eq!(read(&[]), Err(BatchError::Truncated));
    assert_eq!(read(&[2, 12, 0]), Err(BatchError::Version { version: 2 }));
    assert_eq!(read(&[1, 13, 0]), Err(BatchError::ClusterBits { found: 13, expected: 12 }));
    assert_eq!(read(&[1, 12, 4 << 2 | 3]), Err(BatchError::Kind { kind: 3 }));
    assert_eq!(read(&[1, 12, 4 << 2, 0x80]), Err(BatchError::Truncated));
    assert_eq!(read(&[1, 12, 4 << 2, 0x81, 0]), Err(BatchError::Number), "an overlong number");
    assert_eq!(read(&[1, 12, 4 << 2, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2]), Err(BatchError::Number));
    assert_eq!(read(&[1, 12, 4 << 2 | 1, 0x80, 0x20]), Err(BatchError::FrameLength { len: 4096 }));
    assert_eq!(read(&[1, 12, 4 << 2 | 1, 0]), Err(BatchError::FrameLength { len: 0 }));
    assert_eq!(read(&[1, 12, 4 << 2 | 1, 5, 1, 2, 3]), Err(BatchError::Truncated));
    assert_eq!(read(&[1, 12, 4 << 2 | 2, 5]), Err(BatchError::Truncated));
    for disorder in [&[1, 12, 3 << 2, 1][..], &[1, 12, 4 << 2, 0], &[1, 12, 4 << 2, 61], &[1, 12, 0x80, 0x02, 1]] {
        assert!(matches!(read(disorder), Err(BatchError::Order(_))), "{disorder:?}");
    }
    assert_eq!(read(&[1, 12, 4 << 2, 60]), Ok(()));
    let long = vec![1; understudy_run::record::BATCH_LEN_MAX + 1];
    assert!(matches!(read(&long), Err(BatchError::TooLong { .. })));
}

#[test]
fn what_is_not_canonical_is_refused() {
    let zeros_as_data = [&[1, 12, 2][..], &[0; 4096]].concat();
    assert!(matches!(accept(&zeros_as_data), Err(BuildError::NotCanonical { address: 0, .. })));

    // A last cluster of one sector with a byte behind the disk's end.
    let mut last = vec![0; 4096];
    last[0] = 1;
    last[600] = 1;
    let batch = [&[1, 12, 1 << 2 | 2][..], &last].concat();
    let mut builder = RunBuilder::new(Vec::new(), params(4096 + 512, 12, None)).unwrap();
    let err = builder.accept_batch(&batch, &mut Decoder::new().unwrap()).unwrap_err();
    assert!(matches!(err, BuildError::NotCanonical { address: 4096, .. }));
    assert!(matches!(builder.push_zeros(4096, 1), Err(BuildError::Poisoned)), "a failed run takes nothing more");
    assert!(matches!(builder.finish(), Err(BuildError::Poisoned)));
}

#[test]
fn a_batch_that_repeats_an_earlier_one_is_refused() {
    let mut builder = RunBuilder::new(Vec::new(), params(64 << 12, 12, None)).unwrap();
    let mut decoder = Decoder::new().unwrap();
    builder.accept_batch(&[1, 12, 0, 2], &mut decoder).unwrap();
    assert_eq!(builder.next_address(), 2 << 12);
    let err = builder.accept_batch(&[1, 12, 1 << 2, 2], &mut decoder).unwrap_err();
    assert!(matches!(err, BuildError::Batch(BatchError::Order(_))));
}

#[test]
fn a_bomb_in_a_batch_ends_at_the_cluster() {
    let mut encoder = Encoder::new(1).unwrap();
    let huge = vec![1; 64 << 20];
    let understudy_run::Encoded::Compressed(bomb) = encoder.encode(&huge) else { panic!("it shrinks") };
    assert!(bomb.len() < 16384, "{} bytes", bomb.len());
    let geometry = Geometry::new(1 << 20, 16).unwrap();
    let mut writer = BatchWriter::new(geometry, 1 << 20);
    writer.push(0, Stored::Compressed, bomb).unwrap();
    let mut builder = RunBuilder::new(Vec::new(), params(1 << 20, 16, None)).unwrap();
    let err = builder.accept_batch(&writer.take().unwrap(), &mut Decoder::new().unwrap()).unwrap_err();
    assert!(matches!(err, BuildError::Cluster { address: 0, .. }), "{err}");
}
