//! Commands that are killed while they write: what they leave is the whole file or none.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::shared::write;

/// How often each command is killed; `MLXGK_KILLS=50` takes a minute and a half.
pub(crate) fn kills() -> u32 {
    std::env::var("MLXGK_KILLS").ok().and_then(|it| it.parse().ok()).unwrap_or(6)
}

/// A folder, and a command that writes one file in it.
struct Writer {
    folder: TempDir,
    args: Vec<String>,
    out: PathBuf,
    stdin: String,
}

impl Writer {
    /// `args` with `OUT` in place of the file's path, or in what is typed.
    fn new(folder: TempDir, args: &[&str], out: &str, stdin: &str) -> Self {
        let out = folder.path().join(out);
        let name = out.to_str().unwrap();
        let args = args.iter().map(|it| it.replace("OUT", name)).collect();
        let stdin = stdin.replace("OUT", name);
        Self { folder, args, out, stdin }
    }

    fn start(&self) -> Child {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mlxgk"))
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(self.stdin.as_bytes()).unwrap();
        child
    }

    /// Kills the command at one place after another of its run, and then lets it end.
    fn check(&self) {
        let before = names(self.folder.path());
        let begun = Instant::now();
        assert!(self.start().wait().unwrap().success(), "{:?}", self.args);
        let whole_run = begun.elapsed();
        let expected = fs::read(&self.out).unwrap();
        fs::remove_file(&self.out).unwrap();
        let mut written = 0;
        let kills = kills();
        for round in 0..kills {
            let mut child = self.start();
            // Most of the places are near the end, where the file is written.
            let place = 1.1 - 0.7 * f64::from(round * 37 % 61) / 61.0;
            thread::sleep(whole_run.mul_f64(place));
            child.kill().unwrap();
            child.wait().unwrap();
            if self.out.exists() {
                let found = fs::read(&self.out).unwrap();
                assert!(found == expected, "{:?}: a file that is not the whole one", self.args);
                fs::remove_file(&self.out).unwrap();
                written += 1;
            }
        }
        // What was just made may belong to a living process, and is swept a second later.
        thread::sleep(Duration::from_millis(1100));
        assert!(self.start().wait().unwrap().success(), "{:?}, after {written} files", self.args);
        assert!(fs::read(&self.out).unwrap() == expected, "{:?}", self.args);
        fs::remove_file(&self.out).unwrap();
        assert_eq!(names(self.folder.path()), before, "{:?}: nothing else is left", self.args);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let name = |it: std::io::Result<fs::DirEntry>| it.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// A safetensors file with one fp32 matrix.
fn matrix(path: &Path, rows: usize, columns: usize, value: impl Fn(usize) -> f32) {
    let bytes = 4 * rows * columns;
    let header = format!(
        "{{\"vectors\":{{\"dtype\":\"F32\",\"shape\":[{rows},{columns}],\"data_offsets\":[0,{bytes}]}}}}"
    );
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let mut content = (header.len() as u64).to_le_bytes().to_vec();
    content.extend(header.into_bytes());
    content.extend((0..rows * columns).flat_map(|at| value(at).to_le_bytes()));
    fs::write(path, content).unwrap();
}

#[test]
fn an_extraction_leaves_a_whole_file_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = (0..6).map(|it| {
        format!("{{\"positive\": \"What a lovely day {it}!\", \"negative\": \"What a bad day {it}.\"}}\n")
    });
    let pairs = write(folder.path(), "pairs.jsonl", pairs.collect::<String>());
    let args = ["steer", "extract", "--pairs", &pairs, "--out", "OUT"];
    Writer::new(folder, &args, "joy.safetensors", "").check();
}

#[test]
fn an_import_and_an_export_of_60_mb_leave_a_whole_file_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("persona.safetensors");
    matrix(&source, 16, 1_000_000, |at| (at % 1009) as f32 * 0.01 - 5.0);
    let steering = folder.path().join("joy.safetensors");
    let [source, steering] = [source, steering].map(|it| it.to_str().unwrap().to_owned());
    let import = ["steer", "import", &source, "--from", "persona", "--out", "OUT"];
    let import = Writer::new(folder, &import, "out.safetensors", "");
    import.check();
    let mut made = import.start();
    assert!(made.wait().unwrap().success());
    fs::rename(&import.out, &steering).unwrap();
    assert!(fs::metadata(&steering).unwrap().len() > 60_000_000);
    let export = ["steer", "export", &steering, "--out", "OUT"];
    Writer::new(import.folder, &export, "out.gguf", "").check();
}

#[test]
fn a_report_is_whole_or_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("persona.safetensors");
    let config = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../mlx-genkit/bundled/config.json"
    ));
    let config: serde_json::Value = serde_json::from_str(&config.unwrap()).unwrap();
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    matrix(&source, size("num_hidden_layers") + 1, size("hidden_size"), |at| (at % 7) as f32);
    let steering = folder.path().join("joy.safetensors");
    let [source, steering] = [source, steering].map(|it| it.to_str().unwrap().to_owned());
    let import = crate::shared::mlxgk(&[
        "steer", "import", &source, "--from", "persona", "--out", &steering,
    ]);
    assert_eq!(import.status, Some(0), "{}", import.stderr);
    let prompts = write(folder.path(), "prompts.json", r#"["Tell me about the sea."]"#);
    let dose = format!("{steering}:0.1");
    let args = ["validate", "--steer", &dose, "--prompts-file", &prompts, "--max-tokens", "4"];
    let args = [&args[..], &["--alphas", "1", "--no-controls", "--html", "OUT"]].concat();
    Writer::new(folder, &args, "report.html", "").check();
}

#[test]
fn a_conversation_is_saved_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["chat", "--temp", "0", "--max-tokens", "8"];
    Writer::new(folder, &args, "talk.json", "Hello!\n/save OUT\n").check();
}
