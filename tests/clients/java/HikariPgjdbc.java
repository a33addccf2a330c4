import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.StringReader;
import java.io.StringWriter;
import java.net.URI;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Types;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;

/** pgjdbc with HikariCP. */
final class HikariPgjdbc implements Contract.Pool {
    private final String url = jdbc(Contract.URL);
    private final Connection one = DriverManager.getConnection(url);
    private final HikariDataSource pool;

    private HikariPgjdbc() throws SQLException {
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl(url);
        config.setMaximumPoolSize(Contract.POOL_SIZE);
        config.setConnectionTimeout(Contract.PATIENCE * 1000L);
        pool = new HikariDataSource(config);
    }

    public static void main(String[] arguments) throws SQLException {
        HikariPgjdbc client = new HikariPgjdbc();
        Map<String, Contract.Step> steps = new LinkedHashMap<>();
        steps.put("query", client::query);
        steps.put("prepared", client::prepared);
        steps.put("transaction", client::transaction);
        steps.put("copy", client::copy);
        steps.put("notify", client::listen);
        steps.put("cancel", client::cancel);
        steps.put("error", client::error);
        steps.put("big", client::big);
        steps.put("ended", client::ended);
        Contract.run(steps, client);
    }

    /** The same as JDBC spells it: the user is a parameter. */
    private static String jdbc(String url) {
        URI uri = URI.create(url);
        return "jdbc:postgresql://" + uri.getHost() + ":" + uri.getPort() + uri.getPath() + "?user=" + uri.getUserInfo()
                + "&" + uri.getQuery();
    }

    @Override
    public Contract.Taken take() throws SQLException {
        Connection connection = pool.getConnection();
        return new Contract.Taken() {
            @Override
            public Object value(String sql) throws SQLException {
                return HikariPgjdbc.value(connection, sql);
            }

            @Override
            public void close() throws SQLException {
                connection.close();
            }
        };
    }

    @Override
    public void close() throws SQLException {
        pool.close();
        one.close();
    }

    private static Object value(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement();
                ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getObject(1);
        }
    }

    private static void execute(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    private void query() throws SQLException {
        String sql = "SELECT ?::int + 1, ?::text, ?::float8, ?::date";
        try (PreparedStatement statement = one.prepareStatement(sql)) {
            statement.setInt(1, 41);
            statement.setString(2, "é€");
            statement.setDouble(3, 0.5);
            statement.setNull(4, Types.DATE);
            try (ResultSet rows = statement.executeQuery()) {
                rows.next();
                Contract.expect(rows.getInt(1), 42);
                Contract.expect(rows.getString(2), "é€");
                Contract.expect(rows.getDouble(3), 0.5);
                Contract.expect(rows.getDate(4), null);
            }
        }
    }

    private void prepared() throws SQLException {
        try (PreparedStatement statement = one.prepareStatement("SELECT id FROM t WHERE id = ?")) {
            // On the server from the fifth on.
            for (int number = 1; number <= 8; number++) {
                statement.setInt(1, number);
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    Contract.expect(rows.getInt(1), number);
                }
            }
            String sql = "SELECT count(*) FROM pg_prepared_statements WHERE starts_with(statement, 'SELECT id FROM t')";
            Contract.expect(value(one, sql), 1L);
        }
    }

    private void transaction() throws SQLException {
        one.setAutoCommit(false);
        insert(-1);
        one.commit();
        insert(-2);
        one.rollback();
        one.setAutoCommit(true);
        String sql = "SELECT string_agg(id::text, ' ') FROM client_rows WHERE client = '" + Contract.CLIENT
                + "' AND note = 'transaction'";
        Contract.expect(value(one, sql), "-1");
    }

    private void insert(int id) throws SQLException {
        String sql = "INSERT INTO client_rows VALUES (?, ?, 'transaction')";
        try (PreparedStatement statement = one.prepareStatement(sql)) {
            statement.setString(1, Contract.CLIENT);
            statement.setInt(2, id);
            Contract.expect(statement.executeUpdate(), 1);
        }
    }

    private void copy() throws Exception {
        var manager = one.unwrap(PGConnection.class).getCopyAPI();
        String lines = IntStream.range(0, Contract.COPIED)
                .mapToObj(number -> Contract.CLIENT + "\t" + number + "\tcopied\n")
                .collect(Collectors.joining());
        long copied = manager.copyIn("COPY client_rows FROM STDIN", new StringReader(lines));
        Contract.expect(copied, (long) Contract.COPIED);
        StringWriter out = new StringWriter();
        manager.copyOut(
                "COPY (SELECT id FROM client_rows WHERE client = '" + Contract.CLIENT
                        + "' AND note = 'copied' ORDER BY id) TO STDOUT",
                out);
        String wanted = IntStream.range(0, Contract.COPIED)
                .mapToObj(number -> number + "\n")
                .collect(Collectors.joining());
        Contract.expect(out.toString(), wanted);
    }

    private void listen() throws SQLException {
        try (Connection other = DriverManager.getConnection(url)) {
            execute(one, "LISTEN pgjdbc");
            execute(other, "NOTIFY pgjdbc, 'hello'");
            PGNotification[] told =
                    one.unwrap(PGConnection.class).getNotifications(Contract.PATIENCE * 1000);
            Contract.expect(told.length, 1);
            Contract.expect(told[0].getName() + " " + told[0].getParameter(), "pgjdbc hello");
            Contract.expect(told[0].getPID(), other.unwrap(PGConnection.class).getBackendPID());
        }
    }

    private void cancel() throws SQLException {
        try (Connection connection = DriverManager.getConnection(url);
                Statement sleeper = connection.createStatement()) {
            Contract.start("cancel", () -> {
                while (!value(one, Contract.IS_SLEEPING).equals(1L)) {
                    Thread.sleep(20);
                }
                sleeper.cancel();
            });
            try {
                sleeper.executeQuery(Contract.SLEEP);
                throw new AssertionError("not cancelled");
            } catch (SQLException error) {
                Contract.expect(error.getSQLState(), "57014");
            }
            Contract.expect(value(connection, "SELECT 1"), 1);
        }
    }

    private void error() throws SQLException {
        Map<String, String> errors =
                Map.of("INSERT INTO t VALUES (1)", "23505", "SELECT 1 FROM missing", "42P01");
        for (Map.Entry<String, String> entry : errors.entrySet()) {
            try {
                execute(one, entry.getKey());
                throw new AssertionError("no error");
            } catch (SQLException error) {
                Contract.expect(error.getSQLState(), entry.getValue());
            }
        }
        Contract.expect(value(one, "SELECT 1"), 1);
    }

    private void big() throws SQLException {
        int count = 0;
        try (Statement statement = one.createStatement();
                ResultSet rows = statement.executeQuery("SELECT generate_series(1, " + Contract.BIG_ROWS + ")")) {
            while (rows.next()) {
                count++;
                Contract.expect(rows.getInt(1), count);
            }
        }
        Contract.expect(count, Contract.BIG_ROWS);
        String value = (String) value(one, "SELECT repeat('x', " + Contract.BIG_VALUE + ")");
        Contract.expect(value.length(), Contract.BIG_VALUE);
    }

    private void ended() throws Exception {
        try (Contract.Taken taken = take()) {
            taken.value("SELECT pg_terminate_backend(pg_backend_pid())");
            throw new AssertionError("not ended");
        } catch (SQLException error) {
            Contract.expect(error.getSQLState(), "57P01");
        }
        try (Contract.Taken taken = take()) {
            Contract.expect(taken.value("SELECT 1"), 1);
        }
    }
}
