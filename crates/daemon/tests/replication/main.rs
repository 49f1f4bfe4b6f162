//! Two hosts in one process, a real QEMU, real TLS: replicate, compare, fail over.

mod world;

use std::time::Duration;

use understudy_daemon::operations::{Failover, Operate, View};
use understudy_model::State;
use world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_replicates_and_each_point_equals_the_primary_at_its_cut() {
    let world = World::start(&[64 << 20, 8 << 20], "qcow2").await;
    world.write(0, 0, 1 << 20, 0x11);
    world.write(1, 4096, 4096, 0x22);
    world.pair().await;
    world.add_vm().await;
    world.create_and_start().await;
    world.write(0, 512, 1024, 0x33);
    world.until_cut_after_now().await;
    world.compare_newest(&[0, 1]).await;
    for round in 0..5u8 {
        world.write(0, u64::from(round) * 300_000, 5000, 0x40 + round);
        world.write(1, u64::from(round) * 70_000, 512, 0x50 + round);
        world.until_cut_after_now().await;
        world.compare_newest(&[0, 1]).await;
    }
    let points = world.replica().operations().point_list(&world.permit::<View>(), "vm", 0).await.expect("points");
    assert!(points.len() >= 3, "{points:?}");
    let done = world.replica().operations().failover_start(&world.permit::<Failover>(), "vm".into(), None, false).await;
    world.ended_well(world.replica(), done.expect("accepted").job).await;
    assert_eq!(world.replica_state().await, State::FailedOver);
    let done = world.replica().operations().failover_revert(&world.permit::<Failover>(), "vm".into()).await;
    world.ended_well(world.replica(), done.expect("accepted").job).await;
    world.write(0, 40 << 20, 4096, 0x77);
    world.until_cut_after_now().await;
    world.compare_newest(&[0, 1]).await;
    let _ =
        world.primary().operations().replication_suspend(&world.permit::<Operate>(), "vm", 0).await.expect("suspended");
    tokio::time::timeout(Duration::from_secs(10), world.stop()).await.expect("both hosts stop in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_on_while_what_was_sent_is_made_durable() {
    // Durability is asked for every 256 MiB. Without compression there is always something ready to be sent, and some of it
    // gets ahead of the question.
    let world = World::start(&[1 << 30], "raw").await;
    for part in 0..10 {
        world.write(0, part * (80 << 20), 64 << 20, 0x61 + part as u8);
    }
    world.pair().await;
    world.add_vm().await;
    world.create_and_start_compressing(false).await;
    assert_eq!(world.failures().await, 0, "nothing was in the way");
    world.compare_newest(&[0]).await;
    tokio::time::timeout(Duration::from_secs(10), world.stop()).await.expect("both hosts stop in time");
}
