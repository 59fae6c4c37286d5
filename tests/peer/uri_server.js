// An origin by Node's own `http`: every request is answered with its target in `X-Uri`. Prints the port.
const server = require("node:http").createServer((request, response) => {
  request.resume().on("end", () => {
    response.writeHead(200, { "X-Uri": request.url, "Content-Length": 0 });
    response.end();
  });
});
server.listen(0, "127.0.0.1", () => console.log(`listening on ${server.address().port}`));
