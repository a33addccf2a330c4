#!/bin/sh
# Sets Vault or OpenBao up for one application and its database: the database secrets engine, a connection whose
# password nobody else knows, four vault_roles, a policy for each, and the kubernetes auth method with ways in for pods.
#
# Before it: ../postgres/roles.sql, and a password for vault_admin, in a file:
#
#     DB_HOST=postgres DB_NAME=wizard DB_ADMIN_PASSWORD_FILE=password deploy/vault/setup.sh
#
# Run it as often as you like. What is this application's own (vault_roles, policies, auth roles) is written as it
# stands here; what others may share, or Vault alone knows (mounts, the connection, the settings of the auth method), is
# made where it is missing and else left as it is.
set -eu

# --- Variables -------------------------------------------------------------------------------------------------------

# VAULT_ADDR, VAULT_TOKEN, VAULT_NAMESPACE, VAULT_CACERT, or BAO_… for each: where Vault is, and a token that may do
# all this, as the command line of either takes them. VAULT_CLI: which program; by default `bao`, or else `vault`.

# Names of the application's vault_roles and policies, and of its auth roles: each as it is here, and with -ro, -owner
# and -reaper.
: "${NAME:=db-app}"
: "${LOGIN_NAME:=web}"

# PostgreSQL, as Vault reaches it. Required.
: "${DB_HOST:=}"
: "${DB_NAME:=}"
: "${DB_PORT:=5432}"
# Further parameters of the URL. The certificate is checked against what Vault's own machine trusts, or against a file
# there: sslmode=verify-full&sslrootcert=/etc/pg/ca.pem
: "${DB_PARAMETERS:=sslmode=verify-full}"
# Vault's user, and a file with the password it has for now. The password is not read where the connection is there.
: "${DB_ADMIN:=vault_admin}"
: "${DB_ADMIN_PASSWORD_FILE:=}"
# Group roles of ../postgres/roles.sql and reaper.sql.
: "${GROUP_RO:=app_ro}"
: "${GROUP_RW:=app_rw}"
: "${GROUP_OWNER:=app_owner}"
: "${GROUP_REAPER:=app_reaper}"
# Sessions that one credential may have at a time, -1 for any number. At least listen.max_sessions of pglease and a few,
# for it tries a credential before it uses it, and one pod's sessions may all be on one credential.
: "${CONNECTION_LIMIT:=-1}"

# How long a credential outlives a pod that was killed, and how long one lasts at most.
: "${DEFAULT_TTL:=1h}"
: "${MAX_TTL:=24h}"

# Mounts, and what the connection is called in the one.
: "${DB_MOUNT:=database}"
: "${DB_CONNECTION:=$DB_NAME}"
: "${KUBERNETES_MOUNT:=kubernetes}"
# The API server that reviews the pods' tokens, as Vault reaches it. In the same cluster that is all, once Vault's own
# ServiceAccount is bound to the ClusterRole system:auth-delegator. Elsewhere Vault needs the API server's CA and the
# token of a ServiceAccount that is bound so, both in files here.
: "${KUBERNETES_HOST:=https://kubernetes.default.svc}"
: "${KUBERNETES_CA_FILE:=}"
: "${KUBERNETES_REVIEWER_TOKEN_FILE:=}"
# Who may log in: names of ServiceAccounts, those of pods that read and write, that only read, that change the schema,
# and that drop old roles; and of their namespaces. Each is a list with commas.
: "${SERVICE_ACCOUNTS:=$LOGIN_NAME}"
: "${RO_SERVICE_ACCOUNTS:=$LOGIN_NAME-ro}"
: "${OWNER_SERVICE_ACCOUNTS:=$LOGIN_NAME-owner}"
: "${REAPER_SERVICE_ACCOUNTS:=$LOGIN_NAME-reaper}"
: "${NAMESPACES:=default}"
# Of the pods' tokens. One that was made for the API server itself, or for another service, is refused.
: "${AUDIENCE:=vault}"

# --- Means -----------------------------------------------------------------------------------------------------------

fail() {
    echo "setup.sh: $*" >&2
    exit 1
}

say() {
    echo "setup.sh: $*"
}

require() {
    eval "value=\${$1:-}"
    [ -n "$value" ] || fail "$1 is not set: $2"
}

require_file() {
    require "$1" "$2"
    [ -r "$value" ] && [ -s "$value" ] || fail "$1: there is no file $value with something in it that I may read"
}

# The first of these that is there.
find_program() {
    for program in ${VAULT_CLI:-bao vault}; do
        if command -v "$program" >/dev/null; then
            VAULT_CLI=$program
            return
        fi
    done
    fail "there is no program ${VAULT_CLI:-bao or vault}; VAULT_CLI names the one to use"
}

# `vault` knows the variables of the one name only, and `bao` those of both.
name_as_vault_does() {
    for variable in ADDR TOKEN NAMESPACE CACERT; do
        eval "value=\${VAULT_$variable:-\${BAO_$variable:-}}"
        if [ -n "$value" ]; then
            export "VAULT_$variable=$value" "BAO_$variable=$value"
        fi
    done
}

cli() {
    "$VAULT_CLI" "$@"
}

# Enables what is not mounted there: secrets or auth, path, type.
mount_at() {
    mounts=$(cli "$1" list -format=table) || fail "cannot see what is mounted ($1 list)"
    type=$(printf '%s\n' "$mounts" | awk -v path="$2/" '$1 == path { print $2 }')
    case $type in
        "$3") ;;
        "") cli "$1" enable -path="$2" "$3" ;;
        *) fail "$2/ is of type $type, not $3" ;;
    esac
}

# Whether there is something at this path, which `found` then tells.
has() {
    if found=$(cli read "$@" 2>&1); then
        return 0
    fi
    case $found in
        *"No value found"*) return 1 ;;
        *) fail "$found" ;;
    esac
}

# --- The connection --------------------------------------------------------------------------------------------------

connect() {
    config="$DB_MOUNT/config/$DB_CONNECTION"
    # Vault fills in the two, so that the password is not part of what anybody reads here.
    url="postgresql://{{username}}:{{password}}@$DB_HOST:$DB_PORT/$DB_NAME?$DB_PARAMETERS"
    if has -field=connection_details "$config"; then
        case $found in
            *"connection_url:$url "*) say "$config is there, and left as it is; it must allow $NAME and $NAME-*" ;;
            *) fail "$config is another connection; DB_CONNECTION gives this one a name of its own" ;;
        esac
        return
    fi

    require_file DB_ADMIN_PASSWORD_FILE "a file with the password of $DB_ADMIN, which $config is made with"
    # The template has the vault_role's whole name, so that pg_stat_activity and PostgreSQL's log tell whose a session
    # is; the reaper knows leased roles by it. At most 62 bytes: PostgreSQL cuts names at 63.
    # The password goes by standard input: others see arguments. Stopped half-way, the script leaves no connection, so
    # that the next run replaces the password after all.
    trap 'cli delete "$config"; exit 1' HUP INT TERM
    printf '%s' "$(cat "$DB_ADMIN_PASSWORD_FILE")" | cli write "$config" \
        plugin_name=postgresql-database-plugin \
        allowed_roles="$NAME,$NAME-*" \
        connection_url="$url" \
        username="$DB_ADMIN" \
        username_template='v-{{.RoleName | truncate 28}}-{{random 20}}-{{unix_time}}' \
        password=-
    # From here on Vault alone knows the password.
    if ! cli write -force "$DB_MOUNT/rotate-root/$DB_CONNECTION"; then
        cli delete "$config"
        fail "the password of $DB_ADMIN was not replaced, so $config is gone again"
    fi
    trap - HUP INT TERM
}

# --- The vault_roles -------------------------------------------------------------------------------------------------

# Writes one: name, group role, further attributes, revocation.
#
# - "{{name}}" has upper-case letters and hyphens, and is an identifier in quotes only. The password is a literal; one
#   by a password policy of yours must not have a single quote.
# - IN ROLE: all rights come from the group. So revocation has nothing to take back, and a new grant reaches every pod.
# - VALID UNTIL ends new logins by PostgreSQL's own clock, whatever becomes of Vault. Each renewal moves it.
# - CONNECTION LIMIT is what one leaked credential can take of the server's max_connections.
write_role() {
    create="CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
    cli write "$DB_MOUNT/roles/$1" \
        db_name="$DB_CONNECTION" default_ttl="$DEFAULT_TTL" max_ttl="$MAX_TTL" \
        creation_statements="$create $3 CONNECTION LIMIT $CONNECTION_LIMIT IN ROLE \"$2\";" \
        revocation_statements="$4"
}

# Takes milliseconds, waits for no lock, and cannot fail for what the role owns or was granted, so that each lease does
# end; open sessions go on. Dropping the role would fail in those cases and leave a role that can log in; where it
# succeeds, the next statement of an open session fails. The roles that stay are for ../postgres/reaper.sql to drop.
no_login='ALTER ROLE "{{name}}" NOLOGIN;'
# For what has no session left by then and never owns anything.
drop='DROP ROLE IF EXISTS "{{name}}";'

write_roles() {
    write_role "$NAME" "$GROUP_RW" INHERIT "$no_login"
    write_role "$NAME-ro" "$GROUP_RO" INHERIT "$no_login"
    # Has no right before SET ROLE, which a route's `startup_role` does, so that all it makes is the group's: the next
    # credential can change it, and no role is kept by what it owns.
    write_role "$NAME-owner" "$GROUP_OWNER" NOINHERIT "$no_login"
    write_role "$NAME-reaper" "$GROUP_REAPER" INHERIT "$drop"
}

# --- Policies and the way in -----------------------------------------------------------------------------------------

write_policies() {
    for role in "$NAME" "$NAME-ro" "$NAME-owner" "$NAME-reaper"; do
        policy=$(sed "s|database/creds/db-app|$DB_MOUNT/creds/$role|" "$(dirname "$0")/policy.hcl")
        # OpenBao counts the versions of a policy.
        if [ "$(cli policy read "$role" 2>/dev/null)" != "$policy" ]; then
            printf '%s\n' "$policy" | cli policy write "$role" -
        fi
    done
}

set_up_kubernetes() {
    mount_at auth "$KUBERNETES_MOUNT" kubernetes
    config="auth/$KUBERNETES_MOUNT/config"
    if has "$config"; then
        say "$config is there, and left as it is"
    elif [ -z "$KUBERNETES_CA_FILE$KUBERNETES_REVIEWER_TOKEN_FILE" ]; then
        cli write "$config" kubernetes_host="$KUBERNETES_HOST"
    else
        require_file KUBERNETES_CA_FILE "one that KUBERNETES_REVIEWER_TOKEN_FILE goes with"
        require_file KUBERNETES_REVIEWER_TOKEN_FILE "one that KUBERNETES_CA_FILE goes with"
        printf '%s' "$(cat "$KUBERNETES_REVIEWER_TOKEN_FILE")" | cli write "$config" \
            kubernetes_host="$KUBERNETES_HOST" kubernetes_ca_cert="@$KUBERNETES_CA_FILE" \
            disable_local_ca_jwt=true token_reviewer_jwt=-
    fi
}

# Writes one: name, ServiceAccounts, policies.
#
# - A token lives as long as a lease and is renewed beside it: a shorter life would end the lease with it, a longer one
#   is of use to a thief only.
# - token_num_uses counts renewals too, and at its end the leases die with the token: none.
# - The policies are all there is to the token: policy.hcl has what "default" would be needed for.
# - Vault wants an audience from 1.21 on.
write_login() {
    cli write "auth/$KUBERNETES_MOUNT/role/$1" \
        bound_service_account_names="$2" bound_service_account_namespaces="$NAMESPACES" audience="$AUDIENCE" \
        token_policies="$3" token_no_default_policy=true token_type=service \
        token_ttl="$DEFAULT_TTL" token_max_ttl="$MAX_TTL" token_num_uses=0
}

# Who has more rights may take a credential with fewer, for its reads from a replica, or after its migrations.
write_logins() {
    write_login "$LOGIN_NAME" "$SERVICE_ACCOUNTS" "$NAME,$NAME-ro"
    write_login "$LOGIN_NAME-ro" "$RO_SERVICE_ACCOUNTS" "$NAME-ro"
    write_login "$LOGIN_NAME-owner" "$OWNER_SERVICE_ACCOUNTS" "$NAME-owner,$NAME,$NAME-ro"
    write_login "$LOGIN_NAME-reaper" "$REAPER_SERVICE_ACCOUNTS" "$NAME-reaper"
}

# --- In order --------------------------------------------------------------------------------------------------------

require DB_HOST "where Vault reaches PostgreSQL"
require DB_NAME "the application's database"
find_program
name_as_vault_does
# Answers are read as tables.
unset VAULT_FORMAT BAO_FORMAT
require VAULT_ADDR "Vault's address, as in https://vault.vault.svc:8200"
cli token lookup >/dev/null || fail "no token that Vault at $VAULT_ADDR takes: set VAULT_TOKEN, or log in"

mount_at secrets "$DB_MOUNT" database
connect
write_roles
write_policies
set_up_kubernetes
write_logins
say "done: vault.login.role = \"$LOGIN_NAME\", vault_path = \"$DB_MOUNT/creds/$NAME\""
