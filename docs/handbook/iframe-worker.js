// Runs the search in a hidden frame on pages that are opened from the disk, where browsers refuse workers.
// Material for MkDocs looks for the name IFrameWorker, and awaits importScripts.
if (location.protocol === "file:") {
  const load = (inside, url) => new Promise((done, failed) => {
    const script = inside.document.createElement("script");
    Object.assign(script, { src: url, onload: done, onerror: failed });
    inside.document.head.append(script);
  });

  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = Object.assign(document.createElement("iframe"), { hidden: true, srcdoc: "<!DOCTYPE html>" });
      this.ready = new Promise(done => this.frame.onload = done).then(() => {
        const inside = this.frame.contentWindow;
        inside.importScripts = async (...urls) => { for (const url of urls) await load(inside, url); };
        inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }));
        return load(inside, url);
      });
      document.documentElement.append(this.frame);  // there before the body is; appending twice would load it anew
    }
    postMessage(data) {
      this.ready.then(() => {
        const inside = this.frame.contentWindow;
        inside.dispatchEvent(new inside.MessageEvent("message", { data }));
      });
    }
    terminate() {
      this.frame.remove();
    }
  };
}
