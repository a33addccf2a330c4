-- What PostgreSQL needs for pglease: Vault's own user, and the group roles that hold the grants.
--
-- Run as a superuser in the application's database, as often as you like:
--
--     psql -X -v ON_ERROR_STOP=1 -d wizard -f deploy/postgres/roles.sql
--
-- Run it again after an upgrade from PostgreSQL 15 or earlier to a later one, which asks for more of who makes roles.
-- It has no psql commands, so that any driver or migration tool can run it as well. Roles are of the whole server, and
-- so are their names: give each application of one server its own, by replacing app_ro, app_rw and app_owner here, in
-- reaper.sql, and in the variables of ../vault/setup.sh.

-- Leased roles own nothing and are granted nothing: they are members of these groups, which cannot log in.
-- Grants to each leased role would fill the catalogue: every role that ever lived would stay in the access list of
-- every table, and some 17,000 of them are more than a row of pg_class holds.
DO $roles$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['app_ro', 'app_rw', 'app_owner'] LOOP
        IF to_regrole(role_name) IS NULL THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
        END IF;
    END LOOP;

    -- Makes and ends the leased roles. It has no password, and so cannot log in with one, until you give it one for
    -- ../vault/setup.sh, which has Vault replace it. Running this again leaves that as it is.
    IF to_regrole('vault_admin') IS NULL THEN
        CREATE ROLE vault_admin LOGIN CREATEROLE;
    END IF;

    -- It hands on the membership of the groups, and has none of their rights itself: it reads no table.
    -- Up to PostgreSQL 15 CREATEROLE alone allows that, and a lot more, so there its password deserves the care that a
    -- superuser's does.
    IF current_setting('server_version_num')::integer >= 160000 THEN
        EXECUTE 'GRANT app_ro, app_rw, app_owner TO vault_admin WITH ADMIN TRUE, INHERIT FALSE, SET FALSE';
    END IF;

    -- For databases that not everybody may connect to.
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO app_ro, app_rw, app_owner, vault_admin', current_database());
END
$roles$;

-- app_owner makes the tables, and owns whatever is made, as long as sessions take that role on: `startup_role` does.
-- Up to PostgreSQL 14 anybody may make tables in public.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO app_owner;
GRANT USAGE ON SCHEMA public TO app_ro, app_rw;

-- What is there already. Tables that app_owner is to change must be its own: ALTER TABLE … OWNER TO app_owner.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO app_ro;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO app_ro;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app_rw;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO app_rw;

-- What app_owner makes from here on.
ALTER DEFAULT PRIVILEGES FOR ROLE app_owner IN SCHEMA public GRANT SELECT ON TABLES TO app_ro;
ALTER DEFAULT PRIVILEGES FOR ROLE app_owner IN SCHEMA public GRANT SELECT ON SEQUENCES TO app_ro;
ALTER DEFAULT PRIVILEGES FOR ROLE app_owner IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO app_rw;
ALTER DEFAULT PRIVILEGES FOR ROLE app_owner IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO app_rw;
