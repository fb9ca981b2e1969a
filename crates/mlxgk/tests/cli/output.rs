//! What can be put into the JSON of `generate` beyond the contract.

use serde_json::{Value, json};

use crate::shared::mlxgk;

#[test]
fn logprobs_and_guesses_are_in_the_json() {
    let args = ["generate", "--prompt", "one, two, one, two, one,", "--no-auto-chat"];
    let (more, json) = (["--temp", "0", "--max-tokens", "6"], ["--format", "json"]);
    let keep = ["--logprobs", "2", "--set", "output_scores=true"];
    let lookup = [&args[..], &more, &["--prompt-lookup", "3"], &keep].concat();
    let read = |args: &[&str]| -> Value {
        let run = mlxgk(args);
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        serde_json::from_str(&run.stdout).unwrap()
    };
    let (plain, helped) =
        (read(&[&args[..], &more, &json].concat()), read(&[&lookup[..], &json].concat()));
    assert_eq!(plain["sequences"][0]["tokens"], helped["sequences"][0]["tokens"]);
    assert!(plain["assistant"].is_null() && plain["sequences"][0]["logprobs"].is_null());
    assert!(helped["assistant"]["guessed"].as_u64() >= helped["assistant"]["accepted"].as_u64());
    let tokens = helped["sequences"][0]["tokens"].as_array().unwrap();
    let scores = helped["sequences"][0]["transition_scores"].as_array().unwrap();
    assert!(scores.len() == tokens.len() && scores.iter().all(Value::is_number), "{scores:?}");
    let beams = read(&[&args[..], &more, &json, &["--num-beams", "2"]].concat());
    assert_eq!(beams["sequences"][0]["beam_indices"][0], 0, "{beams}");
    let logprobs = helped["sequences"][0]["logprobs"].as_array().unwrap();
    assert_eq!(tokens.len(), logprobs.len());
    for (token, entry) in tokens.iter().zip(logprobs) {
        assert_eq!(&entry["token"], token);
        assert_eq!(&entry["top"][0][0], token, "greedy takes the likeliest");
        assert_eq!(entry["top"].as_array().unwrap().len(), 2);
    }

    // Guesses that are accepted come several at a time, each with its own.
    let streamed = mlxgk(&[&lookup[..], &["--format", "jsonl"]].concat());
    let lines = streamed.stdout.lines().map(|it| serde_json::from_str::<Value>(it).unwrap());
    let pieces = lines.take(tokens.len()).map(|it| it["logprobs"].clone());
    assert_eq!(&pieces.collect::<Vec<_>>(), logprobs);
}

#[test]
fn hidden_states_are_in_the_json_or_refused() {
    let args = ["generate", "--prompt", "one, two,", "--no-auto-chat", "--max-tokens", "3"];
    let run = mlxgk(&[&args[..], &["--hidden-states", "0,5", "--format", "json"]].concat());
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    let document: Value = serde_json::from_str(&run.stdout).unwrap();
    let hidden = &document["sequences"][0]["hidden_states"];
    assert_eq!(hidden["layers"], json!([0, 5]));
    let len = |it: &Value| it.as_array().unwrap().len();
    let (steps, prompt) = (&hidden["steps"], document["prompt_tokens"][0].as_u64().unwrap());
    assert_eq!(len(steps), len(&document["sequences"][0]["tokens"]));
    assert_eq!((len(&steps[0]), len(&steps[0][1])), (2, prompt as usize));
    assert_eq!((len(&steps[1][1]), len(&steps[1][1][0])), (1, 256));

    let run = mlxgk(&[&args[..], &["--attentions", "1", "--format", "json"]].concat());
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    let document: Value = serde_json::from_str(&run.stdout).unwrap();
    let attentions = &document["sequences"][0]["attentions"];
    assert_eq!(attentions["layers"], json!([1]));
    let steps = &attentions["steps"];
    let rows = steps[0][0][0].as_array().unwrap();
    assert_eq!((rows.len(), len(&rows[0])), (prompt as usize, prompt as usize));
    assert_eq!((len(&steps[1][0][0]), len(&steps[1][0][0][0])), (1, prompt as usize + 1));
    let sum: f64 = steps[1][0][0][0].as_array().unwrap().iter().filter_map(Value::as_f64).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");

    for more in [
        ["--hidden-states", "all"],
        ["--set", "output_hidden_states=true"],
        ["--attentions", "all"],
        ["--set", "output_attentions=true"],
    ] {
        let run = mlxgk(&[&args[..], &more].concat());
        assert_eq!(run.status, Some(2), "{}", run.stderr);
        assert!(run.stderr.contains("--format json"), "{}", run.stderr);
    }
}
