// The server's events, for as long as the page is open.

const FIRST_WAIT = 1000; // ms
const LONGEST_WAIT = 10000;

/**
 * @param {Object<string, function(*): void>} handlers by the event's name
 * @param {function(boolean): void} changed called with true when it is connected, with false when it no longer is
 */
export function listen(handlers, changed) {
  let wait = FIRST_WAIT;
  const connect = () => {
    const source = new EventSource("api/events");
    source.addEventListener("open", () => {
      wait = FIRST_WAIT;
      changed(true);
    });
    source.addEventListener("error", () => {
      changed(false);
      // The browser itself connects again, with the last id, unless it has given up.
      if (source.readyState !== EventSource.CLOSED) return;
      setTimeout(connect, wait);
      wait = Math.min(2 * wait, LONGEST_WAIT);
    });
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
    }
  };
  connect();
}
