//! How clients prove who they are.

use super::*;

#[test]
fn who_proves_who_it_is_may_come_from_anywhere() {
    let given = Given::minimum().arguments(&["--listen-auth=password", "--listen-auth-file=DIR/token"]);
    let file = given.dir.path().join("token");
    let loaded = given.load().unwrap();
    assert_eq!((loaded.config.listen.auth, loaded.warnings.len()), (AuthConfig::Password { file }, 0));

    let given = given.arguments(&["--listen-addresses=localhost:5432,0.0.0.0:5433,[::]:5433"]);
    let loaded = given.load().unwrap();
    assert_eq!(loaded.config.listen.addresses.len(), 3);
    let [first, second] = &loaded.warnings[..] else { panic!("{:?}", loaded.warnings) };
    assert!(first.starts_with("listen.addresses has 0.0.0.0:5433, which is no loopback address"), "{first}");
    assert!(second.contains("[::]:5433"), "{second}");
}

#[test]
fn keys_of_another_kind_of_auth_name_it_and_its_own_are_needed() {
    variable_says(
        "PGLEASE_LISTEN_AUTH_FILE",
        "DIR/token",
        "listen.auth_file = \"token\" (PGLEASE_LISTEN_AUTH_FILE): no key of listen.auth = \"trust\" (default); \
         remove one of them",
    );
    flag_says(
        "--listen-auth=password",
        "listen.auth_file: not set; set --listen-auth-file or PGLEASE_LISTEN_AUTH_FILE, or auth_file in the file's \
         [listen]",
    );
    flag_says(
        "--listen-auth=md5",
        "listen.auth = \"md5\" (--listen-auth): no such choice; use \"trust\", \"password\" or \"peer\"",
    );
    for (file, problem) in [
        (
            "missing",
            "cannot be read: No such file or directory (os error 2); name a file that is there and that \
                     this user may read",
        ),
        ("empty", "the file is empty; fill it, or name another"),
    ] {
        let given = Given::minimum()
            .arguments(&["--listen-auth=password", &format!("--listen-auth-file=DIR/{file}")]);
        let expected = format!("listen.auth_file = \"{file}\" (--listen-auth-file): {problem}");
        assert_eq!(given.errors(), expected);
    }
}

#[test]
fn peer_takes_a_unix_socket_and_numbers() {
    let over_tcp = "the kernel tells who connects to a Unix socket, not who does by TCP, and listen.auth = \"peer\" \
                    goes by that; write addresses = [] and unix_socket, or use listen.auth = \"password\"";
    file_says(
        "[listen]\nauth = \"peer\"\npeer_uids = [1000]\n",
        &format!("listen.addresses = [\"localhost:5432\"] (default): {over_tcp}"),
    );
    let uids = "[listen]\nauth = \"peer\"\npeer_uids = ";
    let errors = Given::minimal_file(&format!("{uids}[0, \"app\", -1, 4294967295]\n")).errors();
    for uid in ["app", "-1", "4294967295"] {
        let problem = format!("\"{uid}\" is not the id of a user; write its number, as id -u prints it");
        assert!(errors.contains(&problem), "{errors}");
    }
    file_says(
        &format!("{uids}[]\n"),
        "listen.peer_uids: not set; set --listen-peer-uids or PGLEASE_LISTEN_PEER_UIDS, or peer_uids in the file's \
         [listen]",
    );
    file_says(
        "[listen]\npeer_uids = [0, 1]\n",
        "listen.peer_uids = [\"0\", \"1\"] (pglease.toml:10): no key of listen.auth = \"trust\" (default); remove one \
         of them",
    );
}
