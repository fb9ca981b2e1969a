//! What a model may be called, and where it is looked for.

use mlxgk_model_hub::{ErrorKind, Hub, NoProgress};

fn offline(cache: &std::path::Path) -> Hub {
    Hub::builder().unwrap().cache(cache).offline(true).build()
}

#[test]
fn a_local_folder_comes_first_and_needs_no_network() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let found = offline(folder.path()).find(model.to_str().unwrap(), &mut NoProgress).unwrap();
    assert_eq!((found.folder, found.id, found.commit), (model, None, None));
}

#[test]
fn what_is_no_model_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.gguf");
    std::fs::write(&file, "GGUF").unwrap();
    for (name, words) in [
        (file.to_str().unwrap(), "is a file; a model is a folder"),
        ("./nowhere", "there is no folder ./nowhere"),
        ("/nowhere/at/all", "there is no folder /nowhere/at/all"),
        ("a b", "is not a model"),
        ("a/b/c", "is not a model"),
    ] {
        let error = offline(folder.path()).find(name, &mut NoProgress).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Name, "{name}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn offline_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = offline(folder.path()).find("a/b", &mut NoProgress).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Offline);
    assert!(error.to_string().starts_with("a/b@main is not complete in the cache"), "{error}");
}
