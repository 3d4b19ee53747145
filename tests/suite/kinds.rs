//! Every kind through `fdscan | fdimg write` and `fdrestore -- mkfd check`, far above and onto the
//! numbers where the tools' own descriptors are born.

use crate::harness::{Scratch, Target, mkfd, run, skip};

/// Makes, scans, ends, restores, and looks from inside; then scans the restored one and compares.
fn round_trip(test: &str, specs: &[&str]) {
    let scratch = Scratch::new(test);
    let image = scratch.path("a.fdi");
    let dir = ["--dir", scratch.dir()];
    let make = [&["make", "--close-std"][..], &dir, specs].concat();
    let target = match Target::start(mkfd(), &make) {
        Ok(target) => target,
        Err(why) if why.contains("77") => return skip(test, &why),
        Err(why) => panic!("{specs:?}: {why}"),
    };
    run("fdscan", &["--data", "-o", &image, &target.pid()]).exits(0);
    let before = facts(&image);
    drop(target);
    let program = mkfd();
    let program = program.to_str().unwrap();
    let log = scratch.path("log");
    let check =
        [&["-i", &image, "--", program, "check", "--std", "none", "--log", &log][..], &dir, specs];
    let ran = run("fdrestore", &check.concat());
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    assert_eq!(ran.status, Some(0), "{specs:?}: {ran:?} {said}");
    // What comes back is captured again, and is the same record.
    let restored = Target::start(
        crate::harness::tool("fdrestore"),
        &["-i", &image, "--inherit", "1", "--", program, "sleep", "--close-std"],
    );
    let restored = restored.unwrap_or_else(|why| panic!("{specs:?}: {why}"));
    let again = scratch.path("b.fdi");
    run("fdscan", &["--data", "-o", &again, &restored.pid()]).exits(0);
    assert_eq!(facts(&again), before, "{specs:?}");
}

/// What of an image must survive: all but ids, inode numbers, times and close-on-exec.
fn facts(image: &str) -> Vec<serde_json::Value> {
    let shown = run("fdimg", &["show", "-J", image]).exits(0);
    let document: serde_json::Value = serde_json::from_str(&shown.out).unwrap();
    let mut rows = document["descriptors"].as_array().unwrap().clone();
    rows.retain(|row| row["fd"].as_u64() > Some(2));
    for row in &mut rows {
        let name = row["name"].as_str().unwrap();
        let name = name.split(":[").next().unwrap().split('#').next().unwrap().to_owned();
        let row = row.as_object_mut().unwrap();
        row.insert("name".into(), name.into());
        let mode = row["inode"]["mode"].clone();
        row.insert("inode".into(), mode);
        if let Some(signals) = row["signals"].as_object_mut() {
            signals.insert("id".into(), 0.into());
        }
        for key in ["pid", "pids", "file", "object", "mnt", "cloexec"] {
            row.remove(key);
        }
        // A description made by reopening has no O_TMPFILE; the inode keeps what it means.
        row["flags"]
            .as_array_mut()
            .unwrap()
            .retain(|flag| flag != "tmpfile" && flag != "directory");
    }
    rows
}

macro_rules! kinds {
    ($($name:ident: $($spec:expr),+;)+) => {$(
        #[test]
        fn $name() {
            round_trip(stringify!($name), &[$($spec),+]);
        }
    )+};
}

kinds! {
    a_file_keeps_its_position_and_flags: "regular@3:pos=7,append,nonblock", "regular@4:read,pos=2";
    a_duplicate_shares_its_position: "regular@3,9:pos=3,dup";
    a_path_descriptor_stays_one: "regular@5:opath";
    a_file_far_up_comes_back: "regular@700:pos=4", "eventfd@300:count=3";
    an_unnamed_file_can_still_be_linked: "regular@3:tmpfile";
    an_unlinked_file_keeps_contents_and_name: "unlinked@3:data=gone,pos=2";
    two_descriptions_of_an_unlinked_file_are_one_inode: "unlinked@3,5:data=shared,two";
    a_directory_reads_on_where_it_was: "directory@4:steps=1";
    a_pipe_keeps_its_bytes_and_size: "pipe@3,4:data=hello,size=131072";
    a_pipe_onto_scattered_numbers: "pipe@5,3:data=x", "eventfd@4:count=1", "pipe@20,10";
    a_packet_pipe_keeps_its_bounds: "pipe@3,4:data=ab+c+def,packet";
    one_end_of_a_pipe_may_be_nonblocking: "pipe@3,4:nonblock=0";
    a_second_reader_reads_the_same_pipe: "pipe@3,4,5:data=hello,two";
    a_reader_without_writer_sees_the_end: "pipe@3:reader,data=last";
    a_writer_without_reader_gets_epipe: "pipe@4:writer";
    a_fifo_keeps_its_bytes: "fifo@3,4:data=named";
    a_count_past_32_bits_survives: "eventfd@3:count=1099511627776";
    a_semaphore_stays_one: "eventfd@4:count=3,semaphore,nonblock";
    the_memory_devices_come_back: "mem@3", "mem@4:dev=zero", "mem@5:dev=full", "mem@6:dev=random",
        "mem@7:dev=urandom";
    an_owner_and_a_signal_are_set: "pipe@3,4:own,sig=10,async";
    everything_at_once: "pipe@3,4:data=hello", "regular@5:pos=1", "unlinked@6:data=u",
        "eventfd@7:count=9,cloexec", "mem@8", "regular@60:read";
}
