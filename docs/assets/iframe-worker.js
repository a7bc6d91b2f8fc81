// The search runs in a worker. Browsers start none for a page that is opened from a folder, so there it runs in a
// hidden frame, which behaves like a worker.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.scope = frame.contentWindow
      this.scope.postMessage = data => setTimeout(() => this.dispatchEvent(new MessageEvent("message", { data })))
      const script = frame.contentDocument.createElement("script")
      script.src = url
      this.loaded = new Promise(done => script.addEventListener("load", done))
      frame.contentDocument.body.append(script)
    }

    async postMessage(data) {
      await this.loaded
      this.scope.dispatchEvent(new this.scope.MessageEvent("message", { data }))
    }
  }
}
