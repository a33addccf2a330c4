import java.io.FileInputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Properties;
import java.util.stream.Collectors;

/** Prints a file of properties as JSON. */
class ReadProperties {
    public static void main(String[] arguments) throws Exception {
        var properties = new Properties();
        try (var file = new FileInputStream(arguments[0])) {
            properties.load(file);
        }
        var members = properties.stringPropertyNames().stream()
            .map(name -> quoted(name) + ":" + quoted(properties.getProperty(name)))
            .collect(Collectors.joining(","));
        new PrintStream(System.out, true, StandardCharsets.UTF_8).print("{" + members + "}");
    }

    private static String quoted(String text) {
        return text.chars().mapToObj(unit -> String.format("\\u%04x", unit)).collect(Collectors.joining("", "\"", "\""));
    }
}
