(() => {
  const gone = document.querySelector(".gone");
  const refresh = async () => {
    if (document.hidden || String(getSelection())) return;
    try {
      const answer = await fetch("/", { cache: "no-store", redirect: "error" });
      if (!answer.ok) throw new Error(answer.status);
      const next = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.querySelector("main").replaceWith(next.querySelector("main"));
      document.title = next.title;
      gone.hidden = true;
    } catch {
      gone.hidden = false;
    }
  };
  setInterval(refresh, 5000);
})();
