//! A hypervisor that answers anything at all: the driver says so, in bounded time, and does no harm.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use understudy_hypervisor::driver::{CutRequest, Machine};
use understudy_hypervisor::guard::GuardClient;
use understudy_hypervisor::qemu::{QemuConfig, QemuMachine};
use understudy_hypervisor::qmp::Patience;
use understudy_model::{Consistency, CutNumber, DiskId, DiskSpec};

use crate::qmp_peer::Peer;
use crate::vm::{GUARD, owner};

/// A small generator: the same seed, the same answers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// A value of any shape, often with the keys that matter.
    fn value(&mut self, depth: u32) -> Value {
        const KEYS: [&str; 24] = [
            "status",
            "running",
            "device",
            "qdev",
            "inserted",
            "node-name",
            "drv",
            "image",
            "virtual-size",
            "filename",
            "format",
            "dirty-bitmaps",
            "name",
            "count",
            "granularity",
            "recording",
            "removable",
            "ro",
            "edges",
            "nodes",
            "parent",
            "child",
            "id",
            "type",
        ];
        const WORDS: [&str; 10] = [
            "",
            "running",
            "paused",
            "qcow2",
            "raw",
            "copy-before-write",
            "understudy-f0",
            "node0",
            "/machine/peripheral/d0/virtio-backend",
            "block-backend",
        ];
        match self.roll(if depth == 0 { 5 } else { 8 }) {
            0 => Value::Null,
            1 => json!(self.roll(2) == 0),
            2 => json!([0, 1, 512, 8 << 20, u64::MAX][self.roll(5) as usize]),
            3 => json!(owner().map_name(CutNumber(self.roll(3)))),
            4 => json!(WORDS[self.roll(10) as usize]),
            5 | 6 => (0..self.roll(12)).map(|_| (KEYS[self.roll(24) as usize], self.value(depth - 1))).collect(),
            _ => Value::Array((0..self.roll(4)).map(|_| self.value(depth - 1)).collect()),
        }
    }

    /// An answer that is right but for one place.
    fn almost(&mut self, command: &str) -> Value {
        let mut answer = match command {
            "query-status" => json!({"status": "running", "running": true}),
            "query-block" => json!([{
                "device": "", "qdev": "/machine/peripheral/d0/virtio-backend", "removable": false, "inserted": {
                    "node-name": "node0", "drv": "qcow2", "ro": false,
                    "image": {"virtual-size": 8 << 20, "filename": "/dev/null", "format": "qcow2"},
                    "dirty-bitmaps": [{
                        "name": owner().map_name(CutNumber(1)), "count": self.roll(2) * 4096, "granularity": 4096,
                        "recording": true, "busy": false, "persistent": true,
                    }],
                },
            }]),
            "query-block-jobs" | "query-iothreads" | "query-block-exports" | "query-named-block-nodes" => json!([]),
            "x-debug-query-block-graph" => json!({"nodes": [], "edges": []}),
            _ => json!({}),
        };
        if self.roll(6) == 0 {
            self.spoil(&mut answer);
        }
        answer
    }

    fn spoil(&mut self, value: &mut Value) {
        let into = self.roll(3) > 0;
        match value {
            Value::Object(map) if into && !map.is_empty() => {
                let at = self.roll(map.len() as u64) as usize;
                self.spoil(map.values_mut().nth(at).unwrap());
            }
            Value::Array(list) if into && !list.is_empty() => {
                let at = self.roll(list.len() as u64) as usize;
                self.spoil(&mut list[at]);
            }
            other => *other = self.value(3),
        }
    }
}

#[tokio::test]
async fn whatever_a_hypervisor_answers_the_driver_neither_panics_nor_hangs() {
    for seed in 1..150u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let peer = Peer::tell(move |mut talk| {
            let mut dice = Dice(dice.roll(u64::MAX) | 1);
            async move {
                talk.greet().await;
                while let Some(command) = talk.hear().await {
                    let name = command["execute"].as_str().unwrap();
                    let answer = match dice.roll(20) {
                        0 => json!({"error": {"class": "GenericError", "desc": "no"}, "id": command["id"]}),
                        1 => json!({"return": dice.value(4), "id": command["id"]}),
                        2 if name != "query-block" => return,
                        _ => json!({"return": dice.almost(name), "id": command["id"]}),
                    };
                    talk.say_line(answer).await;
                }
            }
        });
        let directory = tempfile::TempDir::new().unwrap();
        let patience = Patience { connect: Duration::from_secs(5), command: Duration::from_secs(5) };
        let machine = QemuMachine::new(QemuConfig {
            monitor: peer.socket(),
            agent: None,
            runtime_dir: directory.path().join("run"),
            scratch_dir: directory.path().join("scratch"),
            guard: GuardClient::new(GUARD, ["guard"]),
            allow_iothreads: true,
            patience,
        });
        let spec = DiskSpec { id: DiskId(0), key: "id:d0".into(), size: 8 << 20 };
        let begun = Instant::now();
        let _ = machine.describe().await;
        let _ = machine.maps(&owner()).await;
        let _ = machine.begin_tracking(&owner(), std::slice::from_ref(&spec), CutNumber(1)).await;
        let request = CutRequest {
            owner: owner(),
            number: CutNumber(2),
            base: CutNumber(1),
            disks: vec![spec.clone()],
            consistency: Consistency::Standard,
            scratch_limit: 1 << 20,
            images: Vec::new(),
            also: Default::default(),
        };
        if let Ok(cut) = machine.cut(request).await {
            assert!(cut.dirty(DiskId(0)).unwrap().is_empty(), "without a server nothing can be read");
            let _ = cut.release().await;
        }
        let _ = machine.drop_maps(&owner(), CutNumber(2)).await;
        let _ = machine.fold_maps(&owner()).await;
        let _ = machine.tidy(&owner()).await;
        assert!(machine.read_live(&spec).await.is_err());
        assert!(begun.elapsed() < Duration::from_secs(60), "seed {seed}");
    }
}

#[tokio::test]
async fn a_hypervisor_that_stops_answering_costs_its_time_limit() {
    let peer = Peer::tell(async |mut talk| {
        talk.greet().await;
        talk.until_hung_up().await;
    });
    let directory = tempfile::TempDir::new().unwrap();
    let machine = QemuMachine::new(QemuConfig {
        monitor: peer.socket(),
        agent: None,
        runtime_dir: directory.path().join("run"),
        scratch_dir: directory.path().join("scratch"),
        guard: GuardClient::new(GUARD, ["guard"]),
        allow_iothreads: true,
        patience: Patience { connect: Duration::from_secs(5), command: Duration::from_millis(200) },
    });
    let begun = Instant::now();
    let err = machine.describe().await.unwrap_err();
    assert_eq!(err.kind(), understudy_model::ErrorKind::Retry);
    assert!(begun.elapsed() < Duration::from_secs(4));
}
