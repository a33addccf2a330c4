import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

/** What all programs do alike: prints a line for each step, keeps a pool as it is told. See ../README.md. */
final class Contract {
    static final String CLIENT = System.getenv("CLIENT");
    static final String URL = System.getenv("DATABASE_URL");
    static final int POOL_SIZE = 4;
    /** For an answer, on a machine that does much else. In seconds. */
    static final int PATIENCE = 120;
    static final int BIG_ROWS = 100_000;
    static final int BIG_VALUE = 16 << 20;
    static final int COPIED = 10_000;
    static final String SLEEP = "SELECT pg_sleep(600) -- " + CLIENT;
    /** With the name of the client, of which there is one in each world. */
    static final String IS_SLEEPING =
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
                    + " AND starts_with(query, '" + SLEEP + "')";

    /** A connection of the pool that is taken, and given back when closed. */
    interface Taken extends AutoCloseable {
        /** The one value of a statement's result. */
        Object value(String sql) throws Exception;

        @Override
        void close() throws Exception;
    }

    interface Pool extends AutoCloseable {
        Taken take() throws Exception;

        @Override
        void close() throws Exception;
    }

    interface Step {
        void run() throws Exception;
    }

    private Contract() {}

    /** Does the steps, then keeps the pool. */
    static void run(Map<String, Step> steps, Pool pool) {
        String where = "start";
        try {
            for (Map.Entry<String, Step> step : steps.entrySet()) {
                where = step.getKey();
                step.getValue().run();
                say("ok " + where);
            }
            where = "pool";
            useAll(pool);
            say("ok pool");
            Workers workers = null;
            BufferedReader commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
            commands: while ((where = commands.readLine()) != null) {
                switch (where) {
                    case "busy" -> {
                        workers = new Workers(pool);
                        say("ok busy");
                    }
                    case "idle" -> say("ok idle " + workers.stop());
                    case "use" -> {
                        useAll(pool);
                        say("ok use");
                    }
                    case "end" -> {
                        break commands;
                    }
                    default -> throw new IllegalArgumentException("unknown command");
                }
            }
            pool.close();
            say("ok end");
        } catch (Throwable error) {
            fail(where, error);
        }
        System.exit(0);
    }

    /** Threads that use the pool until they are stopped. Made once each has had an answer. */
    private static final class Workers {
        private final CountDownLatch over = new CountDownLatch(1);
        private final CountDownLatch begun = new CountDownLatch(POOL_SIZE);
        private final AtomicLong queries = new AtomicLong();
        private final List<Thread> threads;

        Workers(Pool pool) throws InterruptedException {
            threads = threads("busy", () -> {
                for (long number = 0; over.getCount() > 0; number++) {
                    try (Taken taken = pool.take()) {
                        expect(taken.value("SELECT count(*) FROM t"), 100L);
                    }
                    queries.incrementAndGet();
                    if (number == 0) {
                        begun.countDown();
                    }
                    over.await(10, TimeUnit.MILLISECONDS);
                }
            });
            expect(begun.await(PATIENCE, TimeUnit.SECONDS), true);
        }

        long stop() throws InterruptedException {
            over.countDown();
            for (Thread thread : threads) {
                thread.join();
            }
            return queries.get();
        }
    }

    /** Takes all connections of the pool at the same time. */
    private static void useAll(Pool pool) throws InterruptedException {
        CyclicBarrier together = new CyclicBarrier(POOL_SIZE);
        List<Thread> threads = threads("use", () -> {
            try (Taken taken = pool.take()) {
                together.await(PATIENCE, TimeUnit.SECONDS);
                expect(taken.value("SELECT count(*) FROM t"), 100L);
                together.await(PATIENCE, TimeUnit.SECONDS);
            }
        });
        for (Thread thread : threads) {
            thread.join();
        }
    }

    private static List<Thread> threads(String where, Step work) {
        List<Thread> threads = new ArrayList<>();
        for (int number = 0; number < POOL_SIZE; number++) {
            threads.add(start(where, work));
        }
        return threads;
    }

    /** Runs it in a thread; an error there is the program's. */
    static Thread start(String where, Step work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (Throwable error) {
                fail(where, error);
            }
        });
        thread.start();
        return thread;
    }

    static void expect(Object found, Object wanted) {
        if (!Objects.equals(found, wanted)) {
            throw new AssertionError(found + " where " + wanted + " is right");
        }
    }

    private static synchronized void say(String line) {
        System.out.println(line);
        System.out.flush();
    }

    /** Ends the program, whatever its threads do. */
    private static void fail(String where, Throwable error) {
        say("failed " + where + ": " + String.valueOf(error).replaceAll("\\s+", " "));
        error.printStackTrace();
        Runtime.getRuntime().halt(1);
    }
}
