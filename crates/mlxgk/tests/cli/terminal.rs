//! `mlxgk chat` in a terminal: keys go in, and what a person would see comes out; and the progress that a
//! conversion shows there.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
    process::{Child, Command},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use nix::pty::{Winsize, openpty};
use serde_json::Value;

use crate::shared::bundled;

const ENTER: &str = "\r";
const UP: &str = "\x1b[A";
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const CTRL_P: &str = "\x10";
const CTRL_U: &str = "\x15";
/// What the editor asks of the terminal whenever it begins to read a message.
const READING: &str = "\x1b[?2004h";

/// A program in a terminal.
struct Session {
    child: Child,
    keys: File,
    screen: Arc<Mutex<Vec<u8>>>,
    /// How much of the screen was waited for.
    seen: usize,
}

impl Session {
    /// Starts a conversation whose history is kept in a folder.
    fn chat(state: &Path, args: &[&str]) -> Self {
        let of_chat = ["chat", "--temp", "0", "--max-tokens", "4"];
        Self::start(state, &[&of_chat, args].concat())
    }

    /// Starts a command.
    fn start(state: &Path, args: &[&str]) -> Self {
        let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        let terminal = openpty(&size, None).unwrap();
        let side = || terminal.slave.try_clone().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mlxgk"))
            .args(args)
            .env("XDG_STATE_HOME", state)
            .env("TERM", "xterm")
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let mut output = File::from(terminal.master.try_clone().unwrap());
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&screen);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The terminal is gone with the program.
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                shared.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self { child, keys: File::from(terminal.master), screen, seen: 0 }
    }

    fn press(&mut self, keys: impl AsRef<[u8]>) {
        self.keys.write_all(keys.as_ref()).unwrap();
    }

    /// Waits until a text has appeared after all that was waited for before.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let begun = Instant::now();
        loop {
            let screen = self.screen.lock().unwrap().clone();
            let new = &screen[self.seen..];
            if let Some(at) = new.windows(text.len()).position(|it| it == text.as_bytes()) {
                self.seen += at + text.len();
                return;
            }
            let shown = String::from_utf8_lossy(new);
            assert!(begun.elapsed() < Duration::from_secs(120), "no {text:?} in {shown:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn ends_well(mut self) {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(120) {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().unwrap();
        panic!("it does not end");
    }
}

/// The texts of the messages that a conversation saved, those of the user.
fn asked(file: &Path) -> Vec<String> {
    let messages: Vec<Value> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let own = messages.iter().filter(|it| it["role"] == "user");
    own.map(|it| it["content"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_conversion_shows_how_far_it_is() {
    let work = tempfile::tempdir().unwrap();
    let (source, out) = (bundled(), work.path().join("out"));
    let (source, out) = (source.path().to_str().unwrap(), out.to_str().unwrap());
    let mut session =
        Session::start(work.path(), &["convert", source, "--out", out, "--bits", "4"]);
    // One file has one bar, which is full before it goes.
    session.wait_for("model.safetensors ");
    session.wait_for("0 B/1.68 MiB");
    session.wait_for("1.68 MiB/1.68 MiB");
    session.wait_for("made             ");
    let screen = String::from_utf8_lossy(&session.screen.lock().unwrap()).into_owned();
    assert!(!screen.contains("in all"), "{screen:?}");
    session.ends_well();
}

#[test]
fn a_person_can_paste_edit_and_find_messages_again() {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("saved.json");
    let save = format!("/save {}{ENTER}", saved.display());

    let mut talk = Session::chat(folder.path(), &[]);
    talk.wait_for("/help lists the commands");
    talk.wait_for(READING);
    // A paragraph that is pasted is one message.
    talk.press("\x1b[200~First line.\rSecond line.\x1b[201~");
    talk.wait_for("Second line.");
    talk.press(ENTER);
    talk.wait_for(READING);
    // Left, and a letter in between.
    talk.press(format!("Helo!\x1b[D\x1b[Dl{ENTER}"));
    talk.wait_for(READING);
    // What Ctrl-C drops is not sent, and a byte that is not text ends nothing.
    talk.press(format!("Never mind{CTRL_C}"));
    talk.wait_for(READING);
    talk.press(b"caf\xe9!");
    talk.wait_for("not valid UTF-8");
    talk.wait_for(READING);
    talk.press(format!("{CTRL_U}one\\{ENTER}two{ENTER}"));
    talk.wait_for(READING);
    talk.press(format!("/help{ENTER}"));
    talk.wait_for("/reset                 forget the conversation");
    talk.wait_for(READING);
    talk.press(&save);
    talk.wait_for("saved to");
    talk.wait_for(READING);
    talk.press(CTRL_D);
    talk.ends_well();
    assert_eq!(asked(&saved), ["First line.\nSecond line.", "Hello!", "one\ntwo"]);

    // The next conversation finds them: /save, /help, and then the last message.
    let mut talk = Session::chat(folder.path(), &[]);
    talk.wait_for(READING);
    talk.press(format!("{UP}{UP}{UP}{ENTER}"));
    talk.wait_for(READING);
    // The arrow would move within the two lines.
    talk.press(format!("{CTRL_P}{CTRL_P}{ENTER}"));
    talk.wait_for("saved to");
    talk.wait_for(READING);
    talk.press(CTRL_D);
    talk.ends_well();
    assert_eq!(asked(&saved), ["one\ntwo"]);
}

#[test]
fn messages_are_not_kept_where_that_is_not_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let mut talk = Session::chat(folder.path(), &["--no-history"]);
    talk.wait_for(READING);
    talk.press(format!("Hello!{ENTER}"));
    talk.wait_for(READING);
    talk.press(CTRL_D);
    talk.ends_well();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
