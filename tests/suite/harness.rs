//! Real binaries in real pipelines, and processes that end with their test.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;

/// The binary of this name: in $FDKIT_BINDIR if that is set, else built once, because
/// `cargo test --workspace` does not rebuild other packages' binaries.
pub fn tool(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("FDKIT_BINDIR") {
            return dir.into();
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--workspace", "--bins"])
            .current_dir(root)
            .status()
            .unwrap();
        assert!(built.success(), "the binaries do not build");
        // target/debug/deps/suite-… stands two below the binaries.
        std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned()
    });
    dir.join(name)
}

pub fn mkfd() -> PathBuf {
    match std::env::var_os("FDKIT_MKFD") {
        Some(path) => path.into(),
        None => PathBuf::from(env!("CARGO_BIN_EXE_mkfd")),
    }
}

/// A skip that everybody sees, and that fails under FDKIT_NO_SKIP=1.
pub fn skip(test: &str, reason: &str) {
    assert!(std::env::var_os("FDKIT_NO_SKIP").is_none(), "{test} would be skipped: {reason}");
    let _ = std::io::stderr().write_all(format!("SKIP {test}: {reason}\n").as_bytes());
}

/// Whether a program is there; says so if it is not.
pub fn has(test: &str, program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if !found {
        skip(test, &format!("{program} is not installed"));
    }
    found
}

/// A folder that goes with the test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("fdkit-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub fn dir(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that ends with the test.
pub struct Target {
    child: Child,
    pid: i32,
    /// Kept open: the other end of its stdout.
    _out: BufReader<ChildStdout>,
}

impl Target {
    /// Starts a program that prints its pid when it is ready. What this process leaks is closed.
    pub fn start(program: impl AsRef<OsStr>, args: &[&str]) -> Result<Target, String> {
        let mut child = Command::new(mkfd())
            .args(["exec", "--"])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        match line.trim().parse() {
            Ok(pid) => {
                // The pid is printed before 0, 1 and 2 are closed.
                let closes = args.contains(&"--close-std");
                let still = || (0..3).any(|fd| Path::new(&format!("/proc/{pid}/fd/{fd}")).exists());
                // A fixture may want one of them itself: then the time must do.
                for _ in (0..200).take_while(|_| closes && still()) {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                Ok(Target { child, pid, _out: out })
            }
            Err(_) => {
                let _ = child.kill();
                let out = child.wait_with_output().unwrap();
                Err(format!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr)))
            }
        }
    }

    pub fn pid(&self) -> String {
        self.pid.to_string()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a run did.
#[derive(Debug)]
pub struct Ran {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
    pub bytes: Vec<u8>,
}

impl Ran {
    #[track_caller]
    pub fn exits(self, status: i32) -> Ran {
        assert_eq!(self.status, Some(status), "{self:?}");
        self
    }

    /// One line on stderr that holds this text.
    #[track_caller]
    pub fn says(self, text: &str) -> Ran {
        assert!(self.err.contains(text), "no '{text}': {self:?}");
        assert!(!self.err.contains("panicked"), "{self:?}");
        self
    }
}

impl From<Output> for Ran {
    fn from(out: Output) -> Ran {
        use std::os::unix::process::ExitStatusExt;
        let code = |status: ExitStatus| status.code().or(status.signal().map(|n| 128 + n));
        Ran {
            status: code(out.status),
            err: String::from_utf8_lossy(&out.stderr).into_owned(),
            out: String::from_utf8_lossy(&out.stdout).into_owned(),
            bytes: out.stdout,
        }
    }
}

/// Runs a tool with these bytes on stdin.
pub fn feed(input: &[u8], name: &str, args: &[&str]) -> Ran {
    let mut child = Command::new(tool(name))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap();
    out.into()
}

/// Runs a tool.
pub fn run(name: &str, args: &[&str]) -> Ran {
    feed(b"", name, args)
}

/// Runs a shell command line in which $fdscan, $fdimg, $fdrestore, $ttyctl and $mkfd are the tools.
pub fn sh(line: &str) -> Ran {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).stdin(Stdio::null()).env("mkfd", mkfd());
    for name in ["fdscan", "fdimg", "fdrestore", "ttyctl"] {
        shell.env(name, tool(name));
    }
    shell.output().unwrap().into()
}
