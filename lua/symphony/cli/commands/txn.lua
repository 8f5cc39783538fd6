-- symphony txn: compares and ops in one step. The client reads the file, the daemon's POST /v1/txn does it.
local errors = require "symphony.errors"

return {
  name = "txn",
  summary = "Change several keys in one step, if compares hold",
  description = [[
Carries out the transaction in FILE (- or nothing: standard input): if all compares hold, all ops are done,
else nothing. At most 128 of each, 1.5 MiB together.

  {"compare": [{"key": K, "value": V} | {"key": K, "mod_revision": N} | {"key": K, "create_revision": N} |
               {"key": K, "absent": true} | {"prefix": P, "revision": N} | {"prefix": P, "count": N}, ...],
   "ops": [{"put": K, "value": V} | {"delete": K}, ...]}

Bytes that are not UTF-8 go as key_base64, value_base64, put_base64, delete_base64.

Example:
  echo '{"compare": [{"key": "lock", "absent": true}], "ops": [{"put": "lock", "value": "me"}]}' | symphony txn
  symphony txn --plan change.json]],
  where = "client",
  args = function(parser)
    parser:argument("file", "The transaction as JSON."):args("?"):argname("FILE")
    parser:flag("--plan", "Write nothing; show what would become of it, and which policies say what.")
  end,
  run = function(ctx)
    local json = require "symphony.json"
    local text, err
    if ctx.args.file and ctx.args.file ~= "-" then
      text, err = require("sym.sys").read_file(ctx.args.file, 16 << 20)
      if not text then return nil, errors.new(err.code, "cannot read the transaction: " .. err.message) end
    else
      text = io.read("a") or ""
    end
    local doc
    doc, err = json.decode(text)
    if type(doc) ~= "table" then
      return nil, errors.new("invalid", "the transaction is not a JSON object" .. (err and ": " .. err.message or ""),
        "symphony help txn shows its form")
    end
    -- Checked here too: the message names what is wrong before anything is sent.
    require("symphony.cluster.kv").parse_txn(doc)
    local plan = require "symphony.cli.plan"
    if ctx.args.plan then return plan.ask(ctx, "POST", "/v1/txn?plan=true", text) end
    local answer
    answer, err = ctx.call("POST", "/v1/txn", text)
    if not answer then return nil, err end
    return answer, { text = function() return ("revision %d%s"):format(answer.revision, plan.amended(answer)) end }
  end,
}
