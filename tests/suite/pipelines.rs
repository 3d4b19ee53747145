//! The tools in a row, on programs that this project did not write.

use crate::harness::{Scratch, Target, has, mkfd, run, sh};

#[test]
fn write_without_a_name_prints_the_one_it_chose() {
    let scratch = Scratch::new("name");
    let target = Target::start(mkfd(), &["make", "eventfd@3:count=5"]).unwrap();
    let line = format!("cd {} && $fdscan {} | $fdimg write", scratch.dir(), target.pid());
    let name = format!("mkfd.{}.fdi", target.pid());
    assert_eq!(sh(&line).exits(0).out.trim(), name);
    let whole = run("fdimg", &["verify", &scratch.path(&name)]).exits(0);
    assert!(whole.out.contains("whole: 1 tasks"), "{whole:?}");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(scratch.path(&name)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn select_keeps_what_passes_and_what_it_names() {
    let target = Target::start(
        mkfd(),
        &["make", "--close-std", "pipe@3,4:data=in", "eventfd@5:count=5", "eventfd@9:count=6"],
    )
    .unwrap();
    let scan = format!("$fdscan --data {}", target.pid());
    let pipes = sh(&format!("{scan} | $fdimg select -F pipe | $fdimg verify")).exits(0);
    assert!(pipes.out.contains("2 descriptors, 2 descriptions, 2 bytes"), "{pipes:?}");
    let both = sh(&format!("{scan} | $fdimg select -F '!pipe' -F 0-5 | $fdimg verify")).exits(0);
    assert!(both.out.contains("1 descriptors, 1 descriptions, 0 bytes"), "{both:?}");
    let early = sh(&format!("$fdscan -F eventfd,3 {} | $fdimg verify", target.pid())).exits(0);
    assert!(early.out.contains("3 descriptors"), "{early:?}");
}

#[test]
fn read_gives_back_the_bytes_that_were_written() {
    let scratch = Scratch::new("read");
    let image = scratch.path("a.fdi");
    run("fdscan", &["-o", &image, &std::process::id().to_string()]);
    let read = run("fdimg", &["read", &image]).exits(0);
    assert_eq!(read.bytes, std::fs::read(&image).unwrap());
}

#[test]
fn a_reader_that_stops_early_ends_the_tool_quietly() {
    let pid = std::process::id();
    let ran = sh(&format!("$fdscan {pid} | $fdimg show | head -n 1"));
    assert_eq!((ran.status, ran.err.as_str()), (Some(0), ""));
}

#[test]
fn a_tree_has_its_children_and_what_they_share() {
    let scratch = Scratch::new("tree");
    let image = scratch.path("a.fdi");
    let target =
        Target::start("sh", &["-c", "exec 7</dev/null; sleep 60 & echo $$; wait"]).unwrap();
    run("fdscan", &["-t", "-o", &image, &target.pid()]).exits(0);
    let shown = run("fdimg", &["show", "-J", &image]).exits(0);
    let document: serde_json::Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!(document["tasks"].as_array().unwrap().len(), 2);
    let rows = document["descriptors"].as_array().unwrap();
    let sevens: Vec<_> = rows.iter().filter(|row| row["fd"] == 7).collect();
    assert_eq!(sevens.len(), 2);
    assert_eq!(sevens[0]["file"], sevens[1]["file"]);
}

#[test]
fn a_frozen_scan_lets_the_process_run_on() {
    let target = Target::start("sh", &["-c", "echo $$; while :; do sleep 0.05; done"]).unwrap();
    let scan = format!("$fdscan --freeze {} | $fdimg show -J", target.pid());
    assert!(sh(&scan).exits(0).out.contains("\"frozen\": true"));
    let state = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().chars().next().unwrap()
    };
    assert!(matches!(state(&target.pid()), 'S' | 'R' | 'D'));
    run("fdscan", &["--stop", "-o", "/dev/null", &target.pid()]).exits(0);
    assert_eq!(state(&target.pid()), 'T');
}

#[test]
fn a_python_program_goes_on_with_its_files() {
    if !has("a_python_program_goes_on_with_its_files", "python3") {
        return;
    }
    let scratch = Scratch::new("python");
    let image = scratch.path("a.fdi");
    let program = format!(
        "import os,time\nos.chdir('{}')\nf=open('log','w+')\nf.write('abc')\nf.flush()\n\
         r,w=os.pipe()\nos.write(w,b'queued')\nprint(os.getpid(),flush=True)\ntime.sleep(60)",
        scratch.dir()
    );
    let target = Target::start("python3", &["-c", &program]).unwrap();
    run("fdscan", &["--data", "-o", &image, &target.pid()]).exits(0);
    drop(target);
    let program = "import os\nos.write(3,b'def')\nos.write(1,os.read(4,99)+b' '+os.pread(3,9,0))";
    let args = ["-i", &image, "--inherit", "0,1,2", "--", "python3", "-c", program];
    assert_eq!(run("fdrestore", &args).exits(0).out, "queued abcdef");
}

#[test]
fn redis_and_a_shell_are_scanned_while_they_serve() {
    if !has("redis_and_a_shell_are_scanned_while_they_serve", "redis-server") {
        return;
    }
    let scratch = Scratch::new("redis");
    let port = 20000 + std::process::id() % 20000;
    let line = format!(
        "echo $$; exec redis-server --port {port} --dir {} --save '' >/dev/null",
        scratch.dir()
    );
    let target = Target::start("sh", &["-c", &line]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let shown = sh(&format!("$fdscan {} | $fdimg show", target.pid())).exits(0);
    assert!(shown.out.contains("redis-server"), "{shown:?}");
    assert!(shown.out.contains("eventpoll"), "{shown:?}");
}

#[test]
fn every_process_of_the_machine_is_scanned_or_refused_by_a_documented_status() {
    let scratch = Scratch::new("all");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let image = scratch.path("a.fdi");
        let ran = run("fdscan", &["-o", &image, &pid.to_string()]);
        assert!(matches!(ran.status, Some(0 | 1 | 4 | 5)), "{pid}: {ran:?}");
        if ran.status == Some(0) {
            run("fdimg", &["verify", &image]).exits(0);
        }
    }
}
