//! The kernel memory of a restored tree: it fits into the memory cgroup that it fitted into before.

use crate::cgroup::Cgroup;
use crate::harness::{Scratch, Target, pipeline};
use nix::sys::resource::{Resource, getrlimit};

/// The command line that runs a command in a cgroup.
fn within<'w>(enter: &'w [String; 4], words: &[&'w str]) -> Vec<&'w str> {
    enter.iter().map(String::as_str).chain(["env", "--"]).chain(words.iter().copied()).collect()
}

#[test]
fn a_restored_tree_fits_into_its_old_cgroup_but_not_with_policy_rlimit() {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    needs!(soft >= 20000, "the limit of open files is {soft}, and 20000 is wanted");
    let cgroup = || Cgroup::new();
    let original = match cgroup() {
        Ok(cgroup) => cgroup,
        Err(reason) => skip!("{reason}"),
    };
    let scratch = Scratch::new();
    let file = scratch.file("tree.fdi");
    // 200 children with three descriptors and some memory each; their parent has high numbers.
    let make = ["mkfd", "tree", "200", "--first", "3,4,5", "--later", "300,4095,19000"];
    let enter = original.enter();
    let words = within(&enter, &[&make[..], &["--memory", "256"]].concat());
    let tree = Target::ready(&words).expect("no skip");
    pipeline(&[&["fdscan", "--tree", "-o", &file, &tree.pid]]).quiet();
    let needed = original.peak();
    drop(tree);
    let Some(needed) = needed else { skip!("the cgroup does not tell its peak") };

    let again = cgroup().expect("a second one");
    again.limit(needed);
    let enter = again.enter();
    let restore = ["fdrestore", "--tree", "-i", &file];
    let mut tree = Target::ready(&within(&enter, &restore)).expect("no skip");
    let lines = std::iter::once(tree.said.clone()).chain((0..200).map(|_| tree.line()));
    let pids: Vec<String> = lines.map(|line| line.split_once(' ').expect("ids").1.into()).collect();
    for pid in &pids[1..] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        assert!(status.contains("FDSize:\t64\n"), "{status}");
        // The OOM score of the tasks is the usual one once all of them are restored.
        let adjust = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
        let ours = std::fs::read_to_string("/proc/self/oom_score_adj");
        assert_eq!(adjust.expect("its adjustment"), ours.expect("ours"));
    }
    drop(tree);

    let beyond = cgroup().expect("a third one");
    beyond.limit(needed);
    let enter = beyond.enter();
    let restore = ["fdrestore", "--tree", "--placement", "rlimit", "-i", &file];
    let ran = pipeline(&[&within(&enter, &restore)]);
    let said = ran.said().to_owned();
    let reason = ["is out of memory", "Cannot allocate memory"];
    assert!(reason.iter().any(|reason| said.contains(reason)), "{said}");
    assert_eq!(ran.text(), "", "nothing is said to stand");
    ran.refuses(7, &["fdrestore: task "]).in_one_line();
    assert_eq!(beyond.processes(), Vec::<String>::new());
}
