//! Deriving definitions from real QEMUs, of each family of machine types.

use std::collections::BTreeMap;

use serde_json::json;
use tempfile::TempDir;
use understudy_hypervisor::machine::{Definition, DeriveError, NetworkName, Source};
use understudy_model::{DiskId, ErrorKind};

use crate::machine_vm::{Vm, drives, fake_kernel};

const UUID: &str = "11111111-2222-3333-4444-555555555555";

/// The document without what is the same in every test.
fn shown(definition: &Definition) -> serde_json::Value {
    let mut document: serde_json::Value = serde_json::from_slice(&definition.to_json()).unwrap();
    for (field, value) in [("format", json!("understudy-machine")), ("version", json!(1)), ("uuid", json!(UUID))] {
        assert_eq!(document.as_object_mut().unwrap().remove(field), Some(value));
    }
    document
}

#[tokio::test]
async fn a_q35_with_devices_behind_root_ports() {
    let vm = Vm::start(&[
        "-machine",
        "pc-q35-10.0",
        "-name",
        "guest=web,debug-threads=on",
        "-uuid",
        UUID,
        "-m",
        "192",
        "-smp",
        "4,sockets=2,cores=2",
        "-cpu",
        "Skylake-Client,+avx,-x2apic,hv-relaxed,hv-spinlocks=0x1fff",
        "-rtc",
        "base=localtime",
        "-vga",
        "none",
        "-device",
        "pcie-root-port,id=rp1,bus=pcie.0,addr=2.0,multifunction=on,chassis=1",
        "-device",
        "pcie-root-port,id=rp2,bus=pcie.0,addr=2.1,chassis=2",
        "-device",
        "pcie-root-port,id=rp3,bus=pcie.0,addr=2.2,chassis=3",
        "-object",
        "iothread,id=io0",
        "-blockdev",
        "null-co,node-name=n0,size=67108864",
        "-device",
        "virtio-blk-pci,drive=n0,id=vda,serial=SER0,iothread=io0,bootindex=1,bus=rp2",
        "-device",
        "virtio-scsi-pci,id=scsi0,bus=pcie.0,addr=5",
        "-blockdev",
        "null-co,node-name=n1,size=33554432",
        "-device",
        "scsi-hd,drive=n1,bus=scsi0.0,wwn=0x5000c50015ea71ac,device_id=drive-scsi0,logical_block_size=4096,physical_block_size=4096",
        "-netdev",
        "user,id=net0",
        "-device",
        "virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,bus=rp1,bootindex=3",
        "-netdev",
        "user,id=net1",
        "-device",
        "e1000e,netdev=net1,mac=52:54:00:12:34:57,bus=pcie.0,addr=7",
        "-device",
        "virtio-rng-pci",
        "-device",
        "virtio-serial-pci",
        "-chardev",
        "null,id=ag",
        "-device",
        "virtserialport,chardev=ag,name=org.qemu.guest_agent.0",
        "-serial",
        "null",
    ]);
    let derived = vm.derive(&["/machine/peripheral/vda/virtio-backend", "/machine/peripheral-anon/device[0]"]).await;
    assert_eq!(
        shown(&derived.definition),
        json!({
            "name": "web", "accelerator": "tcg", "machine": "pc-q35-10.0", "firmware": "bios", "memory_mib": 192,
            "cpu": {
                "model": "Skylake-Client", "sockets": 2, "cores": 2, "threads": 1,
                "features": { "avx": "on", "x2apic": "off", "hv-relaxed": "on", "hv-spinlocks": "0x1fff" },
            },
            "clock": "local",
            "root_ports": [{ "slot": 2 }, { "slot": 2, "function": 1 }, { "slot": 2, "function": 2 }],
            "disks": [
                { "disk": 0, "bus": "virtio-blk", "serial": "SER0", "boot": 1, "iothread": true,
                  "place": { "port": 1, "slot": 0 } },
                { "disk": 1, "bus": "virtio-scsi", "wwn": 0x5000_c500_15ea_71acu64, "device_id": "drive-scsi0",
                  "logical_block": 4096, "physical_block": 4096 },
            ],
            "nics": [
                { "model": "e1000e", "mac": "52:54:00:12:34:57", "network": "net1", "place": { "slot": 7 } },
                { "model": "virtio-net", "mac": "52:54:00:12:34:56", "network": "net0", "boot": 3,
                  "place": { "port": 0, "slot": 0 } },
            ],
            "console": true, "rng": true, "agent": true,
        })
    );
    assert_eq!(derived.left_out, Vec::<String>::new());
}

#[tokio::test]
async fn a_pc_with_legacy_drives() {
    let vm = Vm::start(&[
        "-machine",
        "pc-i440fx-10.0",
        "-name",
        "Büro,, alt",
        "-uuid",
        UUID,
        "-m",
        "128",
        "-nodefaults",
        "-device",
        "cirrus-vga",
        "-drive",
        "file=null-co://,if=virtio,format=raw",
        "-drive",
        "file=null-co://,if=ide,format=raw",
        "-device",
        "ahci,id=ahci",
        "-drive",
        "file=null-co://,if=none,id=x,format=raw",
        "-device",
        "ide-hd,drive=x,bus=ahci.2,serial=SATA",
        "-drive",
        "file=null-co://,if=none,id=cd,format=raw",
        "-device",
        "ide-cd,drive=cd,bus=ide.1",
        "-nic",
        "user,model=e1000,mac=52:54:00:00:00:01",
        "-device",
        "virtio-balloon-pci",
        "-device",
        "intel-hda",
    ]);
    let all = drives(&vm.monitor()).await;
    let ours: Vec<&str> = all.iter().map(String::as_str).take(3).collect();
    let derived = vm.derive(&ours).await;
    let document = shown(&derived.definition);
    assert_eq!(document["machine"], "pc-i440fx-10.0");
    assert_eq!(document["name"], "Büro, alt");
    assert_eq!(document["cpu"], json!({ "model": "qemu64", "sockets": 1, "cores": 1, "threads": 1 }));
    let mut disks = document["disks"].as_array().unwrap().clone();
    disks.iter_mut().for_each(|disk| drop(disk.as_object_mut().unwrap().remove("disk")));
    let place = disks.iter().find(|disk| disk["bus"] == "virtio-blk").unwrap()["place"].clone();
    for disk in [
        json!({ "bus": "virtio-blk", "place": place }),
        json!({ "bus": "ide", "serial": "QM00001" }),
        json!({ "bus": "sata", "serial": "SATA" }),
    ] {
        assert!(disks.contains(&disk), "{disk} in {disks:?}");
    }
    assert_eq!(document["nics"].as_array().unwrap().len(), 1);
    assert_eq!((&document["nics"][0]["model"], &document["nics"][0]["network"]), (&json!("e1000"), &json!("default")));
    assert_eq!((&document["video"], &document["console"]), (&json!("vga"), &json!(false)));
    let said = derived.left_out.join("; ");
    assert!(said.contains("graphics card cirrus-vga"), "{said}");
    assert!(said.contains("device intel-hda"), "{said}");
    assert!(said.contains("it is not replicated"), "{said}");
    assert_eq!(derived.left_out.len(), 3, "{said}");
}

#[tokio::test]
async fn a_microvm_with_a_kernel_of_its_own() {
    let directory = TempDir::new().unwrap();
    let kernel = fake_kernel(&directory.path().join("vmlinuz"));
    std::fs::write(directory.path().join("initrd"), b"070701 and so on").unwrap();
    let vm = Vm::start_in(
        directory,
        &[
            "-machine",
            "microvm",
            "-uuid",
            UUID,
            "-m",
            "100",
            "-nodefaults",
            "-serial",
            "null",
            "-blockdev",
            "null-co,node-name=n0,size=67108864",
            "-device",
            "virtio-blk-device,drive=n0,serial=m0,id=root",
            "-netdev",
            "user,id=n0",
            "-device",
            "virtio-net-device,netdev=n0,mac=52:54:00:00:00:01",
            "-device",
            "virtio-rng-device",
            "-append",
            "console=ttyS0 a=\"b c\"",
            "-kernel",
            "{}/vmlinuz",
            "-initrd",
            "{}/initrd",
        ],
    );
    let derived = vm.derive(&["root"]).await;
    let image = blake3::hash(&kernel).to_hex().to_string();
    let initrd = blake3::hash(b"070701 and so on").to_hex().to_string();
    assert_eq!(
        shown(&derived.definition),
        json!({
            "name": UUID, "accelerator": "tcg", "machine": "microvm", "firmware": "bios", "memory_mib": 100,
            "cpu": { "model": "qemu64", "sockets": 1, "cores": 1, "threads": 1 },
            "disks": [{ "disk": 0, "bus": "virtio-blk", "serial": "m0" }],
            "nics": [{ "model": "virtio-net", "mac": "52:54:00:00:00:01", "network": "n0" }],
            "console": true, "rng": true,
            "kernel": { "image": image, "initrd": initrd, "command_line": "console=ttyS0 a=\"b c\"" },
        })
    );
    assert_eq!(derived.blobs.iter().map(|blob| blob.len).collect::<Vec<_>>(), [64 << 10, 16]);
    assert!(derived.blobs.iter().all(|blob| std::fs::metadata(&blob.path).is_ok_and(|m| m.len() == blob.len)));
}

#[tokio::test]
async fn nvme_with_its_own_and_with_a_separate_namespace() {
    let one = Vm::start(&[
        "-machine",
        "pc-q35-10.0",
        "-uuid",
        UUID,
        "-nodefaults",
        "-blockdev",
        "null-co,node-name=n0,size=67108864",
        "-device",
        "nvme,drive=n0,serial=one,id=nv,bootindex=2,addr=4",
    ]);
    let disks = drives(&one.monitor()).await;
    let derived = one.derive(&[&disks[0]]).await;
    let want = json!([{ "disk": 0, "bus": "nvme", "serial": "one", "boot": 2, "place": { "slot": 4 } }]);
    assert_eq!(shown(&derived.definition)["disks"], want);

    let other = Vm::start(&[
        "-machine",
        "pc-q35-10.0",
        "-uuid",
        UUID,
        "-nodefaults",
        "-blockdev",
        "null-co,node-name=n0,size=67108864",
        "-device",
        "nvme,serial=two,id=nv,addr=4",
        "-device",
        "nvme-ns,drive=n0,logical_block_size=4096,physical_block_size=4096",
    ]);
    let disks = drives(&other.monitor()).await;
    let derived = other.derive(&[&disks[0]]).await;
    let want = json!([{ "disk": 0, "bus": "nvme", "serial": "two", "place": { "slot": 4 },
                        "logical_block": 4096, "physical_block": 4096 }]);
    assert_eq!(shown(&derived.definition)["disks"], want);
}

#[tokio::test]
async fn a_disk_on_a_controller_without_a_word_for_it_is_refused_by_name() {
    let vm = Vm::start(&[
        "-machine",
        "pc-i440fx-10.0",
        "-uuid",
        UUID,
        "-nodefaults",
        "-device",
        "lsi53c895a,id=lsi",
        "-blockdev",
        "null-co,node-name=n0,size=67108864",
        "-device",
        "scsi-hd,drive=n0,bus=lsi.0,id=hd",
    ]);
    let source = |qdev: &str| Source { disks: vec![(DiskId(0), qdev.to_owned())], ..Source::default() };
    let err = vm.derive_from(source("hd")).await.unwrap_err();
    assert_eq!(err.to_string(), "disk-0: a scsi-hd on a lsi53c895a is nothing that a replica could be given");
    assert_eq!(err.kind(), ErrorKind::Operator);
    let err = vm.derive_from(source("gone")).await.unwrap_err();
    assert_eq!(err.to_string(), "disk-0: the VM has no device gone");
}

#[tokio::test]
async fn networks_bear_the_names_the_caller_gives_them() {
    let vm = Vm::start(&[
        "-machine",
        "pc-q35-10.0",
        "-uuid",
        UUID,
        "-nodefaults",
        "-netdev",
        "user,id=hostnet0",
        "-device",
        "virtio-net-pci,netdev=hostnet0,mac=52:54:00:00:00:01",
        "-device",
        "rtl8139,mac=52:54:00:00:00:02",
        "-device",
        "pcnet,mac=52:54:00:00:00:03",
    ]);
    let lan = NetworkName::try_from("lan").unwrap();
    let networks = BTreeMap::from([("hostnet0".to_owned(), lan.clone())]);
    let derived = vm.derive_from(Source { networks, ..Source::default() }).await.unwrap();
    let nics: Vec<_> = derived.definition.nics.iter().map(|nic| nic.network.clone()).collect();
    assert_eq!(nics, [Some(lan), None]);
    let said = derived.left_out.join("; ");
    assert!(said.contains("network card pcnet"), "{said}");
    assert!(said.contains("the VM's process cannot be seen from here"), "{said}");
}

#[tokio::test]
async fn a_kernel_that_is_none_is_not_read() {
    let directory = TempDir::new().unwrap();
    fake_kernel(&directory.path().join("vmlinuz"));
    let vm =
        Vm::start_in(directory, &["-machine", "pc-q35-10.0", "-uuid", UUID, "-nodefaults", "-kernel", "{}/vmlinuz"]);
    // What a QEMU that was taken over might say: a secret of the host in place of its kernel.
    std::fs::write(vm.directory.path().join("vmlinuz"), "root:$6$secret:19000::::::\n").unwrap();
    let err = vm.derive_from(Source::default()).await.unwrap_err();
    assert!(matches!(&err, DeriveError::Blob(_)) && err.to_string().ends_with("is no kernel"), "{err}");
}

#[tokio::test]
async fn a_kernel_is_found_relative_to_where_qemu_was_started() {
    let directory = TempDir::new().unwrap();
    let kernel = fake_kernel(&directory.path().join("vmlinuz"));
    let machine = ["-machine", "pc-q35-10.0", "-uuid", UUID, "-nodefaults", "-kernel", "vmlinuz"];
    let vm = Vm::start_attached(directory, &machine).await;
    let derived = vm.derive(&[]).await;
    assert_eq!(derived.blobs[0].name.as_str(), blake3::hash(&kernel).to_hex().as_str());
    let err = vm.derive_from(Source::default()).await.unwrap_err();
    assert!(matches!(&err, DeriveError::Unsupported(why) if why.contains("relative path")), "{err}");
}
