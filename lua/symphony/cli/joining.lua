--- `manager join` and `block join`: one command for each kind of daemon, which runs in the client and shows what the
--- daemon says on the way.
local errors = require "symphony.errors"

local M = {}

-- The token of --token, --token-file or $SYMPHONY_TOKEN; nil if there is none. Raises.
local function token_of(ctx, word, sys)
  local args = ctx.args
  if args.token and args.token_file then
    errors.raise("usage", "give one of --token and --token-file",
      ("symphony help %s join shows how it is used"):format(word))
  end
  if args.token then return args.token end
  if args.token_file then
    local text, err = sys.read_file(args.token_file, 64 * 1024)
    if not text then errors.raise(err.code, "cannot read the token: " .. err.message) end
    return (text:gsub("%s+$", ""))
  end
  return sys.getenv("SYMPHONY_TOKEN")
end

local function run(ctx, word)
  local json = require "symphony.json"
  local args, last = ctx.args, nil
  local lines = require("symphony.lines").of(function(message)
    if message.say then
      ctx.err(message.say)
    else
      last = message
    end
  end)
  local request = { address = args.address, token = token_of(ctx, word, require "sym.sys"), name = args.name,
    advertise = args.advertise }
  local _, err = ctx.call("POST", ("/v1/%s/join"):format(word), request, { on_data = lines, idle_ms = 2 * 3600 * 1000 })
  if last and type(last.error) == "table" then
    return nil, errors.new(last.error.code, last.error.message, last.error.hint)
  end
  if not last or type(last.done) ~= "table" then
    if err and err.code ~= "outcome_unknown" then return nil, err end
    return nil, errors.new("outcome_unknown", "the daemon went away before the join was done",
      "start it again if it has ended, and say it again: it goes on where it was")
  end
  local done = last.done
  for k, v in pairs(done) do
    if v == json.null then done[k] = nil end
  end
  return done
end

--- The specification of `WORD join`. @opts: word, summary, description, text(answer).
function M.command(opts)
  return {
    name = "join",
    summary = opts.summary,
    description = opts.description,
    where = "client",
    args = function(parser)
      parser:argument("address", "A manager of the cluster; the port is 27242 unless it is given.")
        :argname("HOST:PORT")
      parser:option("--token", "The token ($SYMPHONY_TOKEN serves as well)."):argname("TOKEN")
      parser:option("--token-file", "A file with the token."):argname("FILE")
      parser:option("--name", "This node's name (default: the host's, with a number behind it if that is taken).")
        :argname("NAME")
      parser:option("--advertise", "The address that others are told."):argname("HOST")
    end,
    run = function(ctx)
      local done, err = run(ctx, opts.word)
      if not done then return nil, err end
      return done, { text = function() return opts.text(done) end }
    end,
  }
end

return M
