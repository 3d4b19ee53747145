//! Netlink sockets, packet sockets and tunnel devices: what is lost, what cannot be restored, and
//! forged records.

use crate::canonical::records;
use crate::forged::{at, refused, whole, with_body};
use crate::harness::{Ran, Scratch, image_if_can, pipeline, python, restored, scan, show};
use crate::rights;
use serde_cbor::Value;

/// Runs a shell script in a network namespace and a mount namespace of its own. Its function `make`
/// makes descriptors, scans them and kills their process.
fn private(script: &str, scratch: &Scratch) -> Ran {
    let (mkfd, dir) = (crate::harness::MKFD, scratch.dir());
    let tool = |name| crate::harness::tool(name).to_string_lossy().into_owned();
    let (scan, write, restore) = (tool("fdscan"), tool("fdimg"), tool("fdrestore"));
    let names = format!(
        "set -e; mkfd='{mkfd}'; dir='{dir}'; file='{dir}/a.fdi'; scan='{scan}'; img='{write}'
        restore='{restore}'; mount -t sysfs none /sys
        ip link set lo up
        make() {{ \"$mkfd\" make --close-std --dir \"$dir\" \"$@\" >\"$dir/pid\" & made=$!
            until test -s \"$dir/pid\"; do kill -0 $made; sleep 0.01; done
            \"$scan\" --data $made | \"$img\" write \"$file\"; kill -9 $made; wait $made || true; }}
        "
    );
    pipeline(&[&["unshare", "--net", "--mount", "sh", "-c", &format!("{names}{script}")]])
}

#[test]
fn a_port_id_is_restored_or_replaced_if_it_is_in_use() {
    let scratch = Scratch::new();
    // The port id is higher than any process id, so the kernel does not give it to another socket.
    let spec = "netlink@3:port=4026531841,protocol=2";
    let target = target!(scratch.dir(), &[spec]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let title = pipeline(&[&["fdimg", "show", &file]]).ok().text();
    assert!(title.contains("netlink usersock port=4026531841"), "{title}");
    let ran =
        restored(&file, &[], &["mkfd", "check", "--std", "0,1,2", "netlink@3:protocol=2"]).ok();
    assert!(ran.stderr(0).contains("port id 4026531841 is in use"), "{}", ran.whole());
    drop(target);
    restored(&file, &[], &["mkfd", "check", "--std", "0,1,2", spec]).quiet();
}

#[test]
fn queued_messages_and_packets_are_reported_as_lost() {
    let scratch = Scratch::new();
    let target = target!(
        scratch.dir(),
        &["netlink@3:protocol=2,data=hello", "packet@4:data=a frame of some bytes"]
    );
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    // The messages are still queued, for another scan and for the process.
    scan(&target.pid, &scratch.file("b.fdi"));
    for name in [&file, &scratch.file("b.fdi")] {
        for n in 0..2 {
            let queued = show(name)["descriptors"][n]["body"]["queued"].as_u64();
            assert!(queued.unwrap() > 0, "{name} {n}");
        }
    }
    drop(target);
    let check = ["mkfd", "check", "--dir", scratch.dir(), "netlink@3:protocol=2", "packet@4"];
    let ran = restored(&file, &[], &check).ok();
    for what in ["bytes of unread messages are lost", "bytes of unread packets are lost"] {
        assert!(ran.stderr(0).contains(what), "{what}: {}", ran.whole());
    }
}

#[test]
fn a_monitor_of_network_devices_continues() {
    may!(rights::devices());
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let monitor = "import socket, struct
s = socket.socket(fileno=3)
s.settimeout(5)
while True:
    m = s.recv(65536)
    kind = struct.unpack_from('H', m, 4)[0]
    if kind == 16 and b'fdk-new' in m: print('new'); break";
    std::fs::write(scratch.file("monitor.py"), monitor).unwrap();
    // RTNLGRP_LINK
    let script = format!(
        "make netlink@3:groups=1
        (sleep 1; ip tuntap add fdk-new mode tap) &
        \"$restore\" -i \"$file\" --inherit 0,1,2 -- '{python}' \"$dir/monitor.py\""
    );
    let ran = private(&script, &scratch).ok();
    assert_eq!(ran.text(), "new\n", "{}", ran.whole());
}

#[test]
fn a_network_device_is_found_by_its_name_and_a_missing_one_is_named() {
    may!(rights::devices());
    let scratch = Scratch::new();
    let script = "ip tuntap add fdk0 mode tap; ip link set fdk0 up; make packet@3:dev=fdk0
        ip link del fdk0
        \"$restore\" --allow all -i \"$file\" --inherit 0,1,2 -- true && exit 9
        ip tuntap add fdk1 mode tap; ip tuntap add fdk0 mode tap; ip link set fdk0 up
        \"$restore\" --allow all -i \"$file\" --inherit 0,1,2 -- \"$mkfd\" check --dir \"$dir\" packet@3:dev=fdk0";
    let ran = private(script, &scratch).ok();
    assert!(ran.stderr(0).contains("there is no network device fdk0"), "{}", ran.whole());
}

#[test]
fn a_packet_ring_is_refused_with_the_reason() {
    let scratch = Scratch::new();
    let file = match image_if_can(&scratch, &["packet@3:ring", "eventfd@4"]) {
        Ok(file) => file,
        Err(reason) => skip!("{reason}"),
    };
    refused(std::fs::read(&file).unwrap(), 6, &["fd 3", "its ring", "mapped"]);
    let check = ["mkfd", "check", "--std", "0,1,2", "eventfd@4"];
    restored(&file, &["--missing", "skip"], &check).ok();
}

#[test]
fn netlink_and_packet_sockets_with_forged_records_are_refused() {
    let scratch = Scratch::new();
    let file = match image_if_can(&scratch, &["netlink@3:groups=1", "packet@4:members=1"]) {
        Ok(file) => file,
        Err(reason) => skip!("{reason}"),
    };
    let body = |kind: &str, path: &[&str], value: Value| {
        with_body(&file, kind, |body| *at(body, path) = value.clone())
    };
    let netlink = |key: &str, value| body("netlink", &[key], whole(value));
    refused(netlink("class", 1), 3, &["fd 3", "type or protocol"]);
    refused(netlink("protocol", 32), 3, &["fd 3", "type or protocol"]);
    refused(netlink("protocol", -1), 3, &["fd 3", "type or protocol"]);
    refused(netlink("port", 0), 3, &["fd 3", "port id or group"]);
    let group = |group| body("netlink", &["groups"], Value::Array(vec![whole(group)]));
    refused(group(0), 3, &["fd 3", "port id or group"]);
    refused(group(1 << 20), 3, &["fd 3", "port id or group"]);
    refused(netlink("netns", 7), 6, &["fd 3", "net:[7]"]);
    refused(netlink("port", 1 << 40), 3, &["fd 3", "kind netlink"]);
    // Only joining a group shows that this kernel does not have it.
    let run = [crate::harness::RESTORE, &["--allow", "network", "--", "echo", "run"]].concat();
    let ran = crate::harness::Pipeline::new(&[&run]).stdin(group(4000)).run();
    ran.refuses(125, &["fd 3", "no group 4000", "(status 6)"]);

    let packet = |path: &[&str], value| body("packet", path, value);
    let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
    refused(packet(&["class"], whole(10)), 3, &["fd 4", "socket type is not one of packet(7)"]);
    refused(packet(&["device", "name"], bytes(b"")), 6, &["fd 4", "was removed"]);
    refused(packet(&["device", "name"], bytes(&[b'x'; 16])), 3, &["fd 4", "device or membership"]);
    refused(
        packet(&["device", "name"], bytes(b"fdk-none")),
        6,
        &["fd 4", "no network device fdk-none"],
    );
    let member = |key: &str, value| packet(&["members", "0", key], value);
    refused(member("address", bytes(&[1; 33])), 3, &["fd 4", "device or membership"]);
    refused(member("count", whole(0)), 3, &["fd 4", "device or membership"]);
    refused(member("count", whole(1 << 20)), 3, &["fd 4", "more than 65536 memberships"]);
    refused(packet(&["fanout"], whole(0x60000)), 6, &["fd 4", "program"]);
    refused(packet(&["protocol"], whole(65536)), 3, &["fd 4", "kind packet"]);
}

#[test]
fn tunnel_devices_are_created_again_and_work() {
    may!(rights::devices());
    for specs in [
        &["tun@3"][..],
        &["tun@4:tap,address,sndbuf=100000,owner=1234", "tun@3:pi"],
        &["tun@5,3:tap,queues,vnet=12", "tun@4:vnet=10,cloexec"],
        &["tun@4,3:queues,detached", "tun@5,40:dup"],
        &["tun@40:name=a.b-c,persist,owner=7"],
    ] {
        let scratch = Scratch::new();
        let all = specs.join(" ");
        let script = format!(
            "make {all}
            for dev in fdk-3 fdk-4 fdk-5 fdk-40 a.b-c; do ip link del $dev 2>/dev/null || true; done
            \"$restore\" -n -i \"$file\" 2>&1 | grep -q -e '--allow tun'
            \"$restore\" --allow all -i \"$file\" --inherit 0,1,2 -- \"$mkfd\" sleep >\"$dir/again\" & again=$!
            until test -s \"$dir/again\"; do kill -0 $again; sleep 0.01; done
            \"$scan\" --data $again | \"$img\" write \"$dir/b.fdi\"; kill -9 $again; wait $again || true
            for dev in a.b-c; do ip link del $dev 2>/dev/null || true; done
            \"$restore\" --allow all -i \"$file\" --inherit 0,1,2 -- \"$mkfd\" check --std 0,1,2 {all}"
        );
        let ran = private(&script, &scratch).ok();
        assert!(ran.stderr(0).contains("is created anew"), "{}", ran.whole());
        let (was, is) = (show(&scratch.file("a.fdi")), show(&scratch.file("b.fdi")));
        let fds = [3, 4, 5, 40];
        let (was, is) = (records(&was, &fds), records(&is, &fds));
        assert!(was.values().all(|record| record["kind"] == "tun"), "{was:#?}");
        assert_eq!(was, is, "{specs:?}");
    }
}

#[test]
fn an_existing_tunnel_device_is_attached_to_unless_it_is_in_use() {
    may!(rights::devices());
    let scratch = Scratch::new();
    // The hardware address of an existing device is not changed.
    let script = "make tun@3:tap,persist,address
        ip link set fdk-3 address 02:00:00:00:00:01
        \"$restore\" --allow all -i \"$file\" --inherit 0,1,2 -- \"$mkfd\" check tun@3:tap,persist
        cat /sys/class/net/fdk-3/address
        \"$mkfd\" make tun@9:name=fdk-3,tap >\"$dir/other\" & other=$!
        until test -s \"$dir/other\"; do kill -0 $other; sleep 0.01; done
        \"$restore\" --allow all -i \"$file\" --dry-run >/dev/null && exit 9
        kill -9 $other; wait $other || true
        ip link del fdk-3; ip tuntap add fdk-3 mode tun
        \"$restore\" --allow all -i \"$file\" --inherit 0,1,2 -- true && exit 9
        ip link del fdk-3; ip link add fdk-3 type ifb
        \"$restore\" --allow all -i \"$file\" --inherit 0,1,2 -- true && exit 9
        exit 0";
    let ran = private(script, &scratch).ok();
    assert_eq!(ran.text().trim(), "02:00:00:00:00:01", "{}", ran.whole());
    let said = ran.stderr(0);
    assert!(!said.contains("created anew") && said.contains("fdk-3 is in use"), "{}", ran.whole());
    assert_eq!(said.matches("fdk-3 is of another type").count(), 2, "{}", ran.whole());
}

#[test]
fn a_tunnel_with_a_forged_record_is_refused() {
    may!(rights::devices());
    let scratch = Scratch::new();
    private("make tun@3", &scratch).ok();
    let file = scratch.file("a.fdi");
    let device = |key: &str, value: Value| {
        with_body(&file, "tun", |body| *at(body, &["device", key]) = value.clone())
    };
    for name in [&b""[..], b"a/b", b"fdk%d", &[b'x'; 16]] {
        refused(device("name", Value::Bytes(name.to_vec())), 3, &["fd 3", "its name, type"]);
    }
    for flags in [0, 3, 0x8001, 1 << 20] {
        refused(device("flags", whole(flags)), 3, &["fd 3", "type"]);
    }
    refused(device("sndbuf", whole(-1)), 3, &["fd 3", "size"]);
    refused(device("detached", Value::Bool(true)), 3, &["fd 3", "not multi-queue"]);
    refused(device("filtered", Value::Bool(true)), 6, &["fd 3", "filter"]);
    refused(device("flags", whole(1 << 40)), 3, &["fd 3", "kind tun"]);
    let elsewhere = crate::forged::forged(&std::fs::read(&file).unwrap(), |items| {
        for item in items {
            if let fdkit::image::Item::File(file) = item {
                file.inode.as_mut().unwrap().rdev = Some((10, 130));
            }
        }
    });
    refused(elsewhere, 3, &["fd 3", "not /dev/net/tun"]);
}
