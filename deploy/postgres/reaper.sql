-- The reaper: drops the leased roles that a revocation by NOLOGIN has left, once no session is theirs any more.
--
-- Run as a superuser in the application's database, after roles.sql, as often as you like; in each database, if leased
-- roles come to own something in several:
--
--     psql -X -v ON_ERROR_STOP=1 -d wizard -f deploy/postgres/reaper.sql
--
-- From then on, whoever is in app_reaper runs it, and reads what it did (reaper-cronjob.yaml does so each hour):
--
--     SELECT * FROM pglease.reap();
--
-- It runs with the rights of vault_admin, who made the leased roles, whoever calls it. Nobody has to know that one's
-- password, or to be a superuser, to have old roles dropped, and nothing else can be done with it.

-- Whose members may run it. Cannot log in; the leased roles of the vault_role db-app-reaper are its members.
DO $roles$
BEGIN
    IF to_regrole('app_reaper') IS NULL THEN
        CREATE ROLE app_reaper NOLOGIN;
    END IF;
    IF current_setting('server_version_num')::integer >= 160000 THEN
        EXECUTE 'GRANT app_reaper TO vault_admin WITH ADMIN TRUE, INHERIT FALSE, SET FALSE';
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO app_reaper', current_database());
END
$roles$;

-- Not open to everybody, unlike the functions in it, which by PostgreSQL's default are.
CREATE SCHEMA IF NOT EXISTS pglease AUTHORIZATION vault_admin;
GRANT USAGE ON SCHEMA pglease TO app_reaper;

-- Whether the role owns something in this database or of the whole server. What nobody but the role itself could use
-- (its own default privileges, its user mappings) does not count.
CREATE OR REPLACE FUNCTION pglease.owns_something(role_id oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM pg_shdepend d
        WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = role_id AND d.deptype = 'o'
            AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
            AND d.classid NOT IN ('pg_default_acl'::regclass, 'pg_user_mapping'::regclass)
    )
$$;

-- Why the role must stay for now; NULL if it need not.
CREATE OR REPLACE FUNCTION pglease.reason_to_keep(role_id oid, owner_group name) RETURNS text
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    -- Otherwise a transaction goes on seeing the sessions that it has seen first.
    SELECT pg_stat_clear_snapshot();
    SELECT CASE
        -- Dropped under them, their next statement would fail with 42501.
        WHEN sessions.count > 0 THEN format('%s open session(s)', sessions.count)
        -- It could not be committed any more but by a superuser.
        WHEN prepared.count > 0 THEN format('%s prepared transaction(s)', prepared.count)
        -- DROP ROLE would fail, and what is there cannot be changed from here.
        WHEN elsewhere.names IS NOT NULL THEN format('owns or is granted something in %s', elsewhere.names)
        -- Given to the owner group, a function or view that the application's role has made would run with the owner's
        -- rights. That is no change for who could act as the owner already, and nothing to be given to anybody else.
        WHEN pglease.owns_something(role_id) AND NOT pg_has_role(role_id, owner_group, 'MEMBER')
            THEN format('owns something in %s and is no member of %s', current_database(), owner_group)
    END
    FROM
        (SELECT count(*) FROM pg_stat_activity WHERE usesysid = role_id) AS sessions,
        (SELECT count(*) FROM pg_prepared_xacts WHERE owner = pg_get_userbyid(role_id)) AS prepared,
        (
            SELECT string_agg(DISTINCT b.datname, ', ') AS names
            FROM pg_shdepend d JOIN pg_database b ON b.oid = d.dbid
            WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = role_id AND b.datname <> current_database()
        ) AS elsewhere
$$;

-- Drops the role, after what it owned has gone to the owner group and what it was granted has been taken back. Gives
-- what it did. Fails where PostgreSQL would not let the role go.
CREATE OR REPLACE FUNCTION pglease.drop_leased_role(role_id oid, owner_group name) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role_name constant name := pg_get_userbyid(role_id);
    owned constant boolean := pglease.owns_something(role_id);
    lends_group constant boolean := NOT pg_has_role(current_user, owner_group, 'USAGE');
BEGIN
    IF EXISTS (SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = role_id) THEN
        -- Who may administer a role does not have its rights. The one membership goes with the role, the other below.
        EXECUTE format('GRANT %I TO %I', role_name, current_user);
        IF lends_group THEN
            EXECUTE format('GRANT %I TO %I', owner_group, current_user);
        END IF;
        IF owned THEN
            EXECUTE format('REASSIGN OWNED BY %I TO %I', role_name, owner_group);
        END IF;
        -- DROP OWNED drops what is still owned, which must be nothing.
        IF pglease.owns_something(role_id) THEN
            RAISE EXCEPTION 'owns something that REASSIGN OWNED leaves alone';
        END IF;
        EXECUTE format('DROP OWNED BY %I', role_name);
        IF lends_group THEN
            EXECUTE format('REVOKE %I FROM %I', owner_group, current_user);
        END IF;
    END IF;
    EXECUTE format('DROP ROLE %I', role_name);
    RETURN CASE WHEN owned THEN format('what it owned belongs to %s', owner_group) ELSE 'it owned nothing' END;
END
$$;

-- Drops at most max_roles of them, so that one run holds few enough locks. One row for each role that is due: outcome
-- is `dropped` or `kept`, and reason says why. Takes about a second, and a few milliseconds for each role.
--
-- Sessions on a standby are not seen here. For their sake older_than leaves a role alone until its last VALID UNTIL,
-- which is when its lease would have ended, is so long ago.
CREATE OR REPLACE FUNCTION pglease.reap(max_roles integer DEFAULT 1000, older_than interval DEFAULT '0')
RETURNS TABLE (db_role text, outcome text, reason text)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
-- Whoever uses what a role owned is not kept waiting behind a run that waits.
SET lock_timeout = '2s'
-- Of what could not be taken back, the reason tells.
SET client_min_messages = 'error'
AS $$
DECLARE
    groups constant name[] := ARRAY['app_ro', 'app_rw', 'app_owner'];
    owner_group constant name := 'app_owner';
    -- `username_template` of ../vault/setup.sh, and Vault's own.
    leased_name constant text := '^v-.+-[A-Za-z0-9]{20}-[0-9]{10}$';
    due oid[];
    role_id oid;
    dropped integer := 0;
    detail text;
BEGIN
    -- Of this database. Two runs in two of them may want one role: the second waits, and finds it gone.
    IF NOT pg_try_advisory_xact_lock(hashtext('pglease'), hashtext('reap')) THEN
        outcome := 'nothing done';
        reason := 'another run is under way';
        RETURN NEXT;
        RETURN;
    END IF;

    -- A role is due if its name is a leased one, it cannot log in, and vault_admin itself has put it into a group,
    -- which on every version is the trace of who made it. So nobody else's role is touched, however it is called.
    due := ARRAY(
        SELECT r.oid FROM pg_roles r
        WHERE NOT r.rolcanlogin AND r.rolname ~ leased_name AND EXISTS (
            SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
            WHERE m.member = r.oid AND g.rolname = ANY (groups) AND m.grantor = current_user::regrole
        )
            AND (older_than <= '0' OR r.rolvaliduntil < now() - older_than)
        ORDER BY r.oid
    );
    -- A login that was let in just before NOLOGIN is seen as a session a moment later.
    IF due <> '{}' THEN
        PERFORM pg_sleep(1);
    END IF;

    FOREACH role_id IN ARRAY due LOOP
        db_role := (SELECT rolname FROM pg_roles WHERE oid = role_id AND NOT rolcanlogin);
        CONTINUE WHEN db_role IS NULL;
        outcome := 'kept';
        reason := pglease.reason_to_keep(role_id, owner_group);
        IF reason IS NULL AND dropped >= max_roles THEN
            reason := 'left for the next run';
        ELSIF reason IS NULL THEN
            BEGIN
                reason := pglease.drop_leased_role(role_id, owner_group);
                outcome := 'dropped';
                dropped := dropped + 1;
            EXCEPTION WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
                reason := concat_ws(': ', SQLERRM, nullif(detail, ''));
            END;
            -- A run in another database was faster.
            CONTINUE WHEN outcome = 'kept' AND pg_get_userbyid(role_id) <> db_role;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

ALTER FUNCTION pglease.owns_something(oid) OWNER TO vault_admin;
ALTER FUNCTION pglease.reason_to_keep(oid, name) OWNER TO vault_admin;
ALTER FUNCTION pglease.drop_leased_role(oid, name) OWNER TO vault_admin;
ALTER FUNCTION pglease.reap(integer, interval) OWNER TO vault_admin;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pglease FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pglease.reap(integer, interval) TO app_reaper;
