//! The experiment on the bundled model, and what it rests on for several families.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{collections::BTreeSet, path::Path};

use mlx_genkit::{
    ComputeDtype, GenerationConfig, Model, Request,
    kv_cache::{KvCache, LayerSpec},
};
use mlxgk_isolation::{
    Condition, ConditionResult, Example, Labels, Measure, Options, Report, TurnFormat, run,
};
use serde_json::{Value, json};

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn bundled() -> Model {
    Model::bundled(ComputeDtype::Float32).unwrap()
}

fn examples() -> Vec<Example> {
    Example::load_folder(root().join("fixtures/isolation")).unwrap()
}

fn options(conditions: &[Condition]) -> Options {
    let mut options = Options::new(TurnFormat::Chat);
    options.conditions = conditions.to_vec();
    options.config.max_new_tokens = Some(10);
    options.seed = 7;
    options
}

fn found(report: &Report, example: usize, condition: Condition) -> &ConditionResult {
    let results = &report.examples[example].conditions;
    results.iter().find(|it| it.condition == condition).unwrap()
}

fn tokens(it: &ConditionResult) -> Vec<Vec<u32>> {
    let of = |it: &mlxgk_isolation::Output| {
        let answers = it.answers.iter().map(|it| it.1.tokens.clone());
        answers.chain([it.said.tokens.clone()]).collect::<Vec<_>>()
    };
    it.outputs.iter().flat_map(of).collect()
}

/// One of the tiny models in `fixtures/models`.
fn tiny(name: &str) -> Model {
    Model::load(root().join("fixtures/models").join(name), ComputeDtype::Float32).unwrap()
}

const FAMILIES: [&str; 6] = ["llama", "qwen3", "gemma3", "qwen3-moe", "qwen3_5", "phi3"];

fn ids(len: u32, salt: u32) -> Vec<u32> {
    (0..len).map(|it| (it * it * 7 + it * 37 + salt * 53) % 120 + 3).collect()
}

fn config(chunk: Option<usize>) -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: Some(8),
        do_sample: Some(false),
        output_logits: Some(true),
        prefill_chunk_size: chunk,
        ..GenerationConfig::default()
    }
}

/// Reads a text so many tokens at a time, as turns are read.
fn by_turns(model: &Model, tokens: &[u32], turn: usize) -> KvCache {
    let mut cache = model.decoder().new_cache(1);
    for end in (turn..=tokens.len()).step_by(turn) {
        let request = Request::new(&tokens[..end]).config(config(None));
        cache = model.read(request.cache(cache)).unwrap();
    }
    cache
}

#[test]
fn turns_read_one_by_one_are_one_prefill() {
    for name in FAMILIES {
        let model = tiny(name);
        let (turns, prompt) = (ids(48, 1), ids(12, 2));
        let all = [&turns[..], &prompt].concat();
        let cache = by_turns(&model, &turns, 12);
        assert_eq!(cache.len(), 48);
        let grown = model.generate(Request::new(&all[..]).config(config(None)).cache(cache.fork()));
        let grown = grown.unwrap();
        assert_eq!(grown.cached_tokens, 48);
        let once = model.generate(Request::new(&all[..]).config(config(None))).unwrap();
        let (a, b) = (&grown.sequences[0], &once.sequences[0]);
        assert_eq!(a.tokens, b.tokens, "{name}");
        for (a, b) in a.recorded.logits.iter().zip(&b.recorded.logits) {
            let far = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-5 * a.iter().map(|it| it.abs()).fold(1.0, f32::max), "{name}: {far}");
        }
        // Cut at the same columns, the two are equal to the bit.
        let cut = model.generate(Request::new(&all[..]).config(config(Some(12)))).unwrap();
        assert_eq!(a.recorded.logits, cut.sequences[0].recorded.logits, "{name}");
    }
}

#[test]
fn a_fork_leaves_the_original_alone_and_a_trim_restores_it() {
    for name in FAMILIES {
        let model = tiny(name);
        let (turns, prompt) = (ids(40, 3), ids(9, 4));
        let cache = by_turns(&model, &turns, 10);
        let before = cache.state_hash().unwrap();
        let all = [&turns[..], &prompt].concat();
        let mut first = None;
        for _ in 0..4 {
            let request = Request::new(&all[..]).config(config(None)).cache(cache.fork());
            let generation = model.generate(request).unwrap();
            let logits = generation.sequences[0].recorded.logits.clone();
            assert_eq!(first.get_or_insert(logits.clone()), &logits, "{name}");
            assert_eq!(cache.state_hash().unwrap(), before, "{name}");
        }
        // A state cannot be trimmed without a checkpoint.
        if model.decoder().layers().iter().all(|it| *it != LayerSpec::State) {
            let request = Request::new(&all[..]).config(config(None)).cache(cache.fork());
            let mut longer = model.read(request).unwrap();
            assert_ne!(longer.state_hash().unwrap(), before);
            longer.trim(prompt.len()).unwrap();
            assert_eq!(longer.len(), turns.len(), "{name}");
            let request = Request::new(&all[..]).config(config(None)).cache(longer);
            let generation = model.generate(request).unwrap();
            assert_eq!(first.as_ref(), Some(&generation.sequences[0].recorded.logits), "{name}");
        }
    }
}

#[test]
fn what_another_cluster_says_reaches_a_cluster_through_a_shared_cache_alone() {
    let model = bundled();
    let text = std::fs::read_to_string(root().join("fixtures/isolation/01_web_shop.json")).unwrap();
    let plain = Example::from_json(&text).unwrap();
    let other = text.replace("A third of the customers leave", "All the captains sing");
    assert_ne!(text, other);
    let other = Example::from_json(&other).unwrap();
    let conditions = [Condition::Sequential, Condition::Semantic, Condition::TurnReset];
    let report = |example: &Example| {
        run(&model, std::slice::from_ref(example), &options(&conditions), |_| ()).unwrap()
    };
    let (a, b) = (report(&plain), report(&other));
    // What the first cluster's logits come to: its tokens, where they look, how likely terms are.
    let inside = |report: &Report, condition| {
        let output = &found(report, 0, condition).outputs[0];
        let internals = output.internals.as_ref().unwrap();
        (output.said.tokens.clone(), internals.attention, internals.term_logprob)
    };
    for condition in [Condition::Semantic, Condition::TurnReset] {
        assert_eq!(inside(&a, condition), inside(&b, condition), "{condition}");
        assert_eq!(inside(&a, condition).1.unwrap().other, 0.0);
    }
    assert_ne!(inside(&a, Condition::Sequential).2, inside(&b, Condition::Sequential).2);
    assert!(inside(&a, Condition::Sequential).1.unwrap().other > 0.01);
    // The cluster that was changed, and the one that reads it.
    let tokens = |report| tokens(found(report, 0, Condition::Semantic));
    assert_ne!(tokens(&a)[1..], tokens(&b)[1..]);
}

#[test]
fn keeping_caches_changes_no_token() {
    let model = bundled();
    let examples: Vec<Example> = examples().into_iter().step_by(4).collect();
    let conditions = [Condition::Semantic, Condition::Reprefill, Condition::SharedPrefix];
    for (draws, format) in
        [(false, TurnFormat::Chat), (true, TurnFormat::Chat), (true, TurnFormat::Raw)]
    {
        let mut options = options(&conditions);
        options.config.do_sample = Some(draws);
        options.format = format;
        options.internals = false;
        let report = run(&model, &examples, &options, |_| ()).unwrap();
        for (at, example) in examples.iter().enumerate() {
            let [semantic, again, shared] = conditions.map(|it| found(&report, at, it));
            assert_eq!(tokens(semantic), tokens(again), "{}", example.id);
            assert_eq!(tokens(semantic), tokens(shared), "{}", example.id);
            assert!(again.caches.is_empty());
            assert_eq!(semantic.caches.len(), example.clusters.len());
            assert!(semantic.outputs.iter().all(|it| it.said.cached > 0));
            assert!(again.outputs.iter().all(|it| it.said.cached == 0));
            // What all are told is read once instead of once per cluster.
            assert!(shared.read_tokens < semantic.read_tokens);
            let answers: usize = semantic.outputs.iter().map(|it| it.answers.len()).sum();
            assert_eq!(again.read_tokens > semantic.read_tokens, answers > 0);
        }
    }
}

#[test]
fn a_reset_leaves_one_turn_and_chance_deals_the_same_sizes() {
    let model = bundled();
    let example = &examples()[0];
    let conditions = [
        Condition::TurnReset,
        Condition::RandomPartition,
        Condition::TurnMarked,
        Condition::Prompted,
    ];
    let all = [&conditions[..], &[Condition::Sequential, Condition::NoMessages]].concat();
    let mut options = options(&all);
    options.internals = false;
    let report = run(&model, std::slice::from_ref(example), &options, |_| ()).unwrap();
    let reset = found(&report, 0, Condition::TurnReset);
    assert_eq!(reset.caches.len(), example.turns.len());
    assert!(reset.caches.iter().all(|it| it.turns.len() == 1), "{:?}", reset.caches);
    let turns = |it: &ConditionResult| -> Vec<Vec<u64>> {
        it.caches.iter().map(|it| it.turns.iter().map(|it| it.0).collect()).collect()
    };
    let random = turns(found(&report, 0, Condition::RandomPartition));
    assert_eq!(random.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 2]);
    assert_ne!(random, [vec![1, 2, 3], vec![4, 5, 6], vec![7, 8]]);
    assert_eq!(random.concat().into_iter().collect::<BTreeSet<_>>().len(), 8);
    let size = |condition| found(&report, 0, condition).caches[0].tokens;
    let plain = size(Condition::Sequential);
    assert!(size(Condition::TurnMarked) > plain && size(Condition::Prompted) > plain);
    // The last cluster reads both outputs, or none.
    let context = |condition| found(&report, 0, condition).outputs[2].said.context;
    let messages = found(&report, 0, Condition::NoMessages);
    assert!(context(Condition::Sequential) > plain + messages.outputs[2].said.tokens.len());
    assert!(messages.outputs[2].said.context < 2 * messages.caches[2].tokens);
    // Turns take up the same tokens wherever they stand.
    let lengths = |condition| -> Vec<usize> {
        let caches = &found(&report, 0, condition).caches;
        let mut all: Vec<_> = caches.iter().flat_map(|it| &it.turns).collect();
        all.sort_by_key(|it| it.0);
        all.iter().map(|it| it.1.len()).collect()
    };
    for condition in conditions {
        assert_eq!(lengths(condition), lengths(Condition::Sequential), "{condition}");
    }
}

#[test]
fn attention_is_shared_out_completely_and_reports_hold_what_was_found() {
    let model = bundled();
    let all = examples();
    // Answers that stay, outputs read along a chain, two sinks.
    let chosen = [all[2].clone(), all[15].clone(), all[17].clone()];
    assert_eq!(chosen[2].sinks(), [2, 3]);
    let mut steps = Vec::new();
    let mut options = options(&Condition::ALL);
    options.config.max_new_tokens = Some(6);
    let report = run(&model, &chosen, &options, |it| steps.push((it.done, it.of))).unwrap();
    assert_eq!((steps.len(), steps.last()), (27, Some(&(27, 27))));
    for example in &report.examples {
        for result in &example.conditions {
            assert_eq!(result.outputs.len(), example.example.clusters.len());
            for (cluster, output) in example.example.clusters.iter().zip(&result.outputs) {
                let internals = output.internals.as_ref().unwrap();
                let it = internals.attention.unwrap();
                let sum = it.own + it.other + it.messages + it.rest;
                assert!((sum - 1.0).abs() < 1e-4, "{it:?}");
                let reads = !cluster.inputs.is_empty() && result.condition != Condition::NoMessages;
                assert_eq!(it.messages > 0.0, reads, "{} {:?}", result.condition, it);
                let is_sequential = result.condition == Condition::Sequential;
                assert_eq!(internals.kl.is_none(), is_sequential);
                assert!(internals.kl.is_none_or(|it| it > -1e-4));
            }
        }
        let answered = example.example.turns.iter().filter(|it| it.answer).count();
        for result in &example.conditions {
            let answers: usize = result.outputs.iter().map(|it| it.answers.len()).sum();
            assert_eq!(answers, answered, "{}", result.condition);
        }
    }
    let mean = |condition, measure| report.mean(condition, measure).unwrap();
    for measure in [Measure::Kl, Measure::Attention, Measure::TermLogprob, Measure::Leakage] {
        let twins = [Condition::SharedPrefix, Condition::Reprefill].map(|it| mean(it, measure));
        let semantic = mean(Condition::Semantic, measure);
        assert!(twins.iter().all(|it| (it - semantic).abs() < 1e-4), "{measure:?}: {twins:?}");
    }
    assert!(mean(Condition::Semantic, Measure::Kl) > 0.01);
    assert!(mean(Condition::RandomPartition, Measure::Attention) > 0.0);

    let document = report.json();
    let shape: &Value = &document["examples"][0]["results"]["semantic"];
    assert_eq!(shape["outputs"].as_object().unwrap().len(), 3);
    assert_eq!(
        shape["total_tokens"],
        json!(
            shape["cache_sizes"]
                .as_object()
                .unwrap()
                .values()
                .map(|it| it.as_u64().unwrap())
                .sum::<u64>()
        )
    );
    let caches = shape["caches"].as_array().unwrap();
    // Two of keys and values, five layers, two heads of 64 numbers in fp32.
    let bytes = |it: &Value| 2 * 5 * 2 * 64 * 4 * it["tokens"].as_u64().unwrap();
    assert!(caches.iter().all(|it| it["live_bytes"].as_u64() == Some(bytes(it))), "{caches:?}");
    assert_eq!(shape["details"]["cluster_1"]["answers"][0]["turn_id"], 3);
    assert_eq!(document["label_agreement"], 1.0);
    let comparisons = document["comparisons"].as_array().unwrap();
    assert!(comparisons.iter().all(|it| it["against"] == "sequential"));
    // The chain has one specialist, which cannot leak into another.
    let n = |measure: &str| {
        let mut of = comparisons.iter().filter(|it| it["measure"] == measure);
        (of.next().map(|it| it["n"].clone()), of.count())
    };
    assert_eq!(n("vocabulary_leakage"), (Some(json!(2)), 7));
    assert_eq!(n("attention_on_other_clusters"), (Some(json!(3)), 7));
    assert_eq!((n("kl_from_sequential"), n("cache_tokens").1), ((None, 0), 6));
    let table = report.to_string();
    assert_eq!(table.lines().count(), 10 + 1 + 9, "{table}");
    let page = report.html();
    assert_eq!(page.matches("<svg").count(), 16);
    assert!(page.contains("Differences from sequential"));
}

#[test]
fn turns_find_their_clusters() {
    let model = bundled();
    let examples = examples();
    let mut options = options(&[Condition::NoMessages]);
    options.internals = false;
    options.config.max_new_tokens = Some(1);
    let mut agreement = |labels| {
        options.labels = labels;
        let report = run(&model, &examples[..6], &options, |_| ()).unwrap();
        let again = run(&model, &examples[..6], &options, |_| ()).unwrap();
        let labels =
            |it: &Report| it.examples.iter().map(|it| it.labels.clone()).collect::<Vec<_>>();
        assert_eq!(labels(&report), labels(&again));
        report.agreement().unwrap()
    };
    assert_eq!(agreement(Labels::Given), 1.0);
    let keyword = agreement(Labels::Keyword);
    assert!(keyword > 0.5, "{keyword}");
    assert!(agreement(Labels::Hidden { layer: None }) > 0.0);
    // What is said twice belongs to one cluster.
    let mut twice = examples[0].clone();
    for at in 0..4 {
        let mut again = twice.turns[at].clone();
        again.id += 100;
        twice.turns.push(again);
    }
    options.labels = Labels::Hidden { layer: None };
    let report = run(&model, &[twice], &options, |_| ()).unwrap();
    let labels = &report.examples[0].labels;
    assert_eq!(labels[..4], labels[8..]);
    let wrong = Labels::Hidden { layer: Some(5) };
    options.labels = wrong;
    let error = run(&model, &examples[..1], &options, |_| ()).unwrap_err();
    assert!(error.to_string().contains("there is no layer 5"), "{error}");
}

#[test]
fn a_file_of_the_schema_is_read_whatever_else_it_holds() {
    let turn = |id: u64| {
        let cluster = (id - 1) / 5 + 1;
        let mut turn = json!({"turn_id": id, "cluster": cluster, "role": "user", "type": "context",
            "instruction": null, "content": format!("Sentence number {id} of the text.")});
        if id == 15 {
            turn["content"] = json!("");
            turn["query"] = json!("What follows from this?");
        }
        turn
    };
    let cluster = |from: u64, task: &str| {
        json!({"task_type": task, "turns": (from..from + 5).collect::<Vec<_>>(),
            "terminology": ["alpha", "beta"], "expected_output": "x", "focus_area": "y"})
    };
    let synthesis = json!({"task_type": "synthesis", "turns": [11, 12, 13, 14, 15],
        "expected_output": {"deep": [1, 2]}, "focus_area": "z"});
    let file = json!({
        "id": "validation_001", "domain": "software_engineering", "total_turns": 15, "description": "d",
        "semantic_clusters": {"cluster_1": cluster(1, "technical"), "cluster_2": cluster(6, "business"),
            "cluster_3": synthesis},
        "turns": (1..=15).map(turn).collect::<Vec<_>>(),
        "ground_truth": {"output_cluster_1": {"a": {"b": []}}},
        "methodology_notes": {"expected_contamination_patterns": ["p"]},
    });
    let example = Example::from_json(&file.to_string()).unwrap();
    assert_eq!(example.turns[14].text, "What follows from this?");
    assert_eq!(example.turns[14].cluster, Some(2));
    assert_eq!(
        (example.clusters[2].inputs.as_slice(), example.order()),
        (&[0, 1][..], &[0, 1, 2][..])
    );
    assert_eq!(example.specialists(), [0, 1]);
    let report = run(&bundled(), &[example], &options(&[Condition::Sequential]), |_| ()).unwrap();
    assert_eq!(found(&report, 0, Condition::Sequential).caches[0].turns.len(), 15);
}

#[test]
fn a_graph_that_cannot_be_walked_is_refused() {
    let made = |clusters: Value| {
        let turns = json!([{"turn_id": 1, "content": "hi"}]);
        Example::from_json(
            &json!({"id": "x", "semantic_clusters": clusters, "turns": turns}).to_string(),
        )
    };
    let reads = |inputs: &[&str]| json!({"inputs": inputs});
    let error = |clusters| made(clusters).unwrap_err().to_string();
    let cycle =
        json!({"a": reads(&[]), "b": reads(&["a", "d"]), "c": reads(&["b"]), "d": reads(&["c"])});
    assert!(error(cycle).ends_with("in a cycle: c → d → b → c"));
    assert!(error(json!({"a": reads(&["a"])})).ends_with("in a cycle: a → a"));
    assert!(error(json!({"a": reads(&["z"])})).contains("unknown cluster `z`; expected one of a"));
    let diamond =
        json!({"d": reads(&["b", "c"]), "c": reads(&["a"]), "b": reads(&["a"]), "a": reads(&[])});
    let diamond = made(diamond).unwrap();
    assert_eq!(diamond.order(), [3, 1, 2, 0]);
    assert_eq!((diamond.sinks(), diamond.specialists()), (vec![0], vec![3]));
}

#[test]
fn twenty_examples_are_varied_and_fit_the_bundled_model() {
    let model = bundled();
    let examples = examples();
    assert_eq!(examples.len(), 20);
    let unique =
        |of: &dyn Fn(&Example) -> String| examples.iter().map(of).collect::<BTreeSet<_>>().len();
    assert_eq!(unique(&|it| it.id.clone()), 20);
    assert_eq!(unique(&|it| it.domain.clone()), 20);
    assert!(examples.iter().filter(|it| it.turns.iter().any(|it| it.answer)).count() >= 6);
    for example in &examples {
        assert!(example.specialists().len() >= 2 || example.clusters.len() > 2, "{}", example.id);
        assert!(example.system.is_some() && example.turns.iter().all(|it| it.cluster.is_some()));
        for &it in &example.specialists() {
            assert_eq!(example.clusters[it].terms.len(), 8, "{}", example.id);
        }
    }
    // With the longest context there is.
    let mut options = options(&[Condition::Prompted]);
    options.internals = false;
    let report = run(&model, &examples, &options, |_| ()).unwrap();
    let contexts = report.examples.iter().flat_map(|it| &it.conditions[0].outputs);
    let longest = contexts.map(|it| it.said.context).max().unwrap();
    assert!(longest + 6 * 64 < 1024, "{longest}");
}

#[test]
fn a_text_beyond_the_model_s_context_is_refused() {
    let model = bundled();
    let long = "The fox went home. ".repeat(400);
    let file = json!({"id": "long", "semantic_clusters": {"a": {}},
        "turns": [{"turn_id": 1, "cluster": "a", "content": long}]});
    let example = Example::from_json(&file.to_string()).unwrap();
    let error = run(&model, &[example], &options(&[Condition::Semantic]), |_| ()).unwrap_err();
    assert!(error.to_string().starts_with("example long: "), "{error}");
    assert!(error.to_string().contains("more than the 1024 that"), "{error}");
}

#[test]
fn seeds_are_those_of_the_run_the_condition_and_the_output() {
    let model = bundled();
    let example = [examples().swap_remove(2)];
    let conditions = [Condition::Sequential, Condition::Semantic];
    let mut options = options(&conditions);
    options.internals = false;
    let tokens_of = |options: &Options, at| {
        let report = run(&model, &example, options, |_| ()).unwrap();
        tokens(found(&report, 0, at))
    };
    let semantic = tokens_of(&options, Condition::Semantic);
    // What runs before or beside it changes nothing.
    options.conditions = vec![Condition::Semantic];
    assert_eq!(tokens_of(&options, Condition::Semantic), semantic);
    options.seed += 1;
    assert_ne!(tokens_of(&options, Condition::Semantic), semantic);
}
